"""What holds after any sequence of opening, switching, nesting, pinning, evicting, resizing, damaging and failing.

On either backend. Without prefetching, and with it, by a planner that names any tasks. Pages read by a store, and
natively as far as nothing is to fail. On whole tables, and on tables whose rows come on demand, of texts that lack
some.

Every output is bit-equal to that of a freshly opened engine, every resident page matches its hash, no slot, thread or
descriptor is lost, tasks in use and no others hold block tables, and the budget is never
exceeded. For a long run, outside of CI:

    WEIGHTPAGER_OPERATIONS=100000 pytest tests/engine/test_any_sequence.py --timeout 0
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import weightpager as wp
from devices import HostCopier
from engines import Always, check_pages
from faults import FaultyBlocks, FaultyFiles, FaultyStore
from repetitions import times
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import EngineConfig
from weightpager.errors import BudgetError, PageCorruptError, StoreError, SwitchFailedError, WeightpagerError
from weightpager.kernels.choice import NATIVE
from weightpager.runtime.memory.staged_arena import Staging
from weightpager.store import LocalStore
from weightpager.store.block_reader import RowReader

OPERATIONS = os.environ.get("WEIGHTPAGER_OPERATIONS")
STEPS = 25

TASKS = ("animal", "weather", "number", "colour")
SEEN = torch.tensor([[2, 4, 9, 12, 3, 0], [2, 15, 5, 6, 7, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6])

tasks = st.sampled_from(TASKS)


def logits(module: Any, text: int) -> torch.Tensor:
    """Of a text; all but the first have words that no training text has."""
    words = SEEN + text * torch.arange(1, 13).view(2, 6) * 7
    if not isinstance(module, torch.nn.Module):
        return torch.from_numpy(module(input_ids=words.numpy(), attention_mask=MASK.numpy())["logits"])
    with torch.inference_mode():
        return module(input_ids=words, attention_mask=MASK).logits


def check_rows(engine: wp.Engine, stored: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Every row in memory is what storage has, and is found where it is."""
    for name, cache in engine._open.rows.caches.items():
        with cache._lock:
            slots = np.arange(cache._state[1])
            here = cache._row_in[: len(slots)]
            assert (cache._slot_of[here] == slots).all()
            assert (cache._slot_of >= 0).sum() == len(slots) <= cache.slots
            assert (cache._stored.reshape(-1, cache.entry.row_bytes)[slots] == stored[name][here]).all()


def settle(engine: wp.Engine) -> None:
    """Wait until no page is on its way."""
    end = time.monotonic() + 20
    while engine.blocks.loading and time.monotonic() < end:
        time.sleep(0.001)


def in_use() -> tuple[int, int]:
    """Threads and descriptors, without those of engines that nobody keeps."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


STAGED = Staging(HostCopier(), 1)

native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("which", "staging", "ahead", "backend"),
    [
        pytest.param("assistant", None, False, "torch", id="direct"),
        pytest.param("assistant", STAGED, False, "torch", id="staged", marks=slow),
        pytest.param("assistant", None, True, "torch", id="direct-ahead", marks=slow),
        pytest.param("assistant", STAGED, True, "torch", id="staged-ahead", marks=slow),
        pytest.param("assistant-natively", None, False, "torch", id="natively", marks=slow),
        pytest.param("wordy-natively", None, True, "torch", id="natively-ahead", marks=slow),
        pytest.param("wordy-natively", None, True, "native", id="native-natively-ahead", marks=[native, slow]),
        pytest.param("wordy", None, False, "torch", id="rows", marks=slow),
        pytest.param("wordy-files", None, True, "torch", id="rows-from-files-ahead", marks=slow),
        pytest.param("wordy", STAGED, True, "torch", id="rows-staged-ahead", marks=slow),
        pytest.param("assistant", None, False, "native", id="native", marks=native),
        pytest.param("wordy", None, False, "native", id="native-rows", marks=[native, slow]),
        pytest.param("wordy-files", None, True, "native", id="native-rows-from-files-ahead", marks=[native, slow]),
    ],
)
def test_any_sequence(
    request: pytest.FixtureRequest, which: str, staging: Staging | None, ahead: bool, backend: str
) -> None:
    bundle = Bundle.open(request.getfixturevalue(f"{which.partition('-')[0]}_bundle"))
    expected = {}
    for task in TASKS:
        with wp.Engine(bundle, EngineConfig(backend=backend)) as engine, engine.task(task) as module:
            expected[task] = [logits(module, text) for text in range(4 if bundle.row_tables else 1)]
    with RowReader(bundle) as reader:
        stored = {name: reader.stored(name) for name in bundle.row_tables}
    with wp.Engine(bundle, EngineConfig(backend=backend), staging=staging) as engine:
        use = engine.report().memory
    tables = footprint(bundle)
    spared = tables.all_tables - tables.largest_table if staging is None else 0  # so that tables come and go
    fixed = use.total - use.arena - use.rows + tables.rows - spared
    least = max(len(bundle.pages_of(task)) for task in TASKS)

    class AnySequence(RuleBasedStateMachine):
        named: Mapping[str, float] = {}
        """What the planner says."""

        def __init__(self) -> None:
            super().__init__()
            self.patch = pytest.MonkeyPatch()
            self.texts = 0

        @initialize(
            spare=st.integers(0, 12),
            read_timeout=st.sampled_from([30.0, 0.25]),
            together=st.sampled_from([1, 3]),
        )
        def open(self, spare: int, read_timeout: float, together: int) -> None:
            self.patch.setattr("weightpager.store.read_plan.GROUP_BYTES", together * bundle.page_bytes)
            files = LocalStore(bundle)
            if "-files" in which:
                self.store = FaultyBlocks(files, bundle.manifest.pages)
            else:
                self.store = FaultyFiles(files) if "-natively" in which else FaultyStore(files)
            budget = fixed + (least + spare) * bundle.page_bytes
            # One thread: which reads come after one that fails must not be a matter of chance.
            self.read_timeout, self.together = read_timeout, together
            config = EngineConfig(
                budget,
                io_threads=1,
                read_timeout=read_timeout,
                prefetch=ahead and (lambda visits: self.named),
                backend=backend,
            )
            self.engine = wp.Engine(bundle, config, lambda _: self.store, staging)
            if ahead:
                prefetcher, policy = self.engine._prefetching.prefetcher, self.engine._prefetching.policy()
                prefetcher.renew(replace(policy, targets=[replace(policy.targets[0], trial=Always(lambda: None))]))
            self.current: str | None = None
            self.nested: list[tuple[str, ExitStack]] = []
            self.pinned: list[str] = []

        def teardown(self) -> None:
            self.patch.undo()
            if hasattr(self, "engine"):
                while self.nested:
                    self.leave()
                self.engine.close()

        def compare(self, module: Any, task: str) -> bool:
            """With what a fresh engine gives for the next text; False where storage failed to give a row."""
            self.texts += 1
            text = self.texts % len(expected[task])
            try:
                found = logits(module, text)
            except (StoreError, PageCorruptError):
                assert bundle.row_tables
                return False
            assert torch.equal(found, expected[task][text])
            return True

        @rule(task=tasks)
        def activate(self, task: str) -> None:
            try:
                module = self.engine.activate(task)
            except BudgetError:
                return
            except SwitchFailedError:
                self.current = None
                return
            except WeightpagerError:
                return
            self.current = task
            self.compare(module, task)

        @rule(task=tasks)
        def activate_without_waiting(self, task: str) -> None:
            try:
                module = self.engine.activate(task, wait=False)
            except (BudgetError, StoreError):
                return
            except SwitchFailedError:
                self.current = None
                return
            self.current = task
            try:
                while not self.compare(module, task):
                    pass  # it hasn't come to the layers that wait for their pages
            except SwitchFailedError:
                self.deactivate()

        @rule(spare=st.integers(-2, 12))
        def set_budget(self, spare: int) -> None:
            try:
                self.engine.set_budget(fixed + (least + spare) * bundle.page_bytes)
            except (BudgetError, StoreError):
                return

        # What a rule can do is asked inside it: that depends on time too, and which rules there are must not.
        @rule(which=st.integers(0, 100))
        def damage_memory(self, which: int) -> None:
            self.mend()
            with self.engine._residency._lock:
                pages = self.engine.blocks.resident()
                if not len(pages):
                    return
                page = int(pages[which % len(pages)])
                self.engine._memory.arena.pages[int(self.engine.blocks.page_table[page]), 11] ^= 4
            assert self.engine.repair() in ([page], [] if ahead else [page])  # it may have gone for another
            assert self.engine.verify() == []

        @precondition(lambda self: ahead)
        @rule(weights=st.dictionaries(tasks, st.floats(0, 1e300)), seconds=st.sampled_from([0, 0.002, 0.02]))
        def foretell(self, weights: dict[str, float], seconds: float) -> None:
            self.named = weights
            time.sleep(seconds)

        @rule(reads=st.integers(1, 3))
        def hang_reads(self, reads: int) -> None:
            self.store.hanging = reads

        @rule(reads=st.integers(1, 3))
        def shorten_reads(self, reads: int) -> None:
            self.store.shortening = reads

        @rule()
        def deactivate(self) -> None:
            self.engine.deactivate()
            self.current = None

        @rule(task=tasks)
        def nest(self, task: str) -> None:
            stack = ExitStack()
            try:
                module = stack.enter_context(self.engine.task(task))
            except (BudgetError, StoreError, WeightpagerError):
                return
            self.compare(module, task)
            self.nested.append((task, stack))

        @rule()
        def leave(self) -> None:
            if self.nested:
                self.nested.pop()[1].close()

        @rule(task=tasks)
        def pin(self, task: str) -> None:
            try:
                self.engine.pin(task)
            except WeightpagerError:
                return
            self.pinned.append(task)

        @rule()
        def unpin(self) -> None:
            if self.pinned:
                self.engine.unpin(self.pinned.pop())

        @rule(task=tasks)
        def prefetch(self, task: str) -> None:
            lacking = set(bundle.pages_of(task).tolist()) - set(self.engine.blocks.resident().tolist())
            try:
                queued = self.engine.prefetch(task)
            except (BudgetError, StoreError):
                return
            assert queued == len(lacking) or ahead  # some may have come meanwhile

        @rule()
        def evict(self) -> None:
            try:
                self.engine.evict()
            except StoreError:
                assert ahead

        @rule(reads=st.integers(1, 3))
        def pull_the_cable(self, reads: int) -> None:
            self.store.failing = reads

        @rule(reads=st.integers(1, 2))
        def damage_reads(self, reads: int) -> None:
            self.store.damaging = reads

        @rule()
        def mend(self) -> None:
            self.store.failing = self.store.damaging = self.store.shortening = self.store.hanging = 0

        @rule()
        def reopen(self) -> None:
            while self.nested:
                self.leave()
            slots = max(self.engine.blocks.slots, least)
            self.engine.close()
            self.open(slots - least, self.read_timeout, self.together)

        def in_use(self) -> set[str]:
            return {*([self.current] if self.current else []), *self.pinned, *(task for task, _ in self.nested)}

        @invariant()
        def sound(self) -> None:
            if not hasattr(self, "engine"):
                return
            settle(self.engine)
            with self.engine._residency._lock:
                check_pages(self.engine)
                check_rows(self.engine, stored)
                report = self.engine.report()
                assert set(report.active) == self.in_use()
                assert report.memory.total <= report.budget
                wanted = set().union(*(bundle.pages_of(task).tolist() for task in self.in_use()))
                assert set(self.engine.blocks.locked().tolist()) == wanted
                assert wanted <= set(self.engine.blocks.resident().tolist())
                room = self.engine._memory.tables
                assert room.taken <= room.size
                assert room.in_use == sum(self.engine._open.tasks[task].tables.nbytes for task in self.in_use())
            assert not ahead or self.engine._prefetching.prefetcher._thread.is_alive()

        @invariant()
        def every_task_in_use_is_right(self) -> None:
            if hasattr(self, "engine"):
                for task in sorted(self.in_use()):
                    self.compare(self.engine.module(task), task)

    before = in_use()
    examples = max(1, int(OPERATIONS or times(300 if ahead else 1000)) // STEPS)
    run_state_machine_as_test(
        AnySequence, settings=settings(max_examples=examples, stateful_step_count=STEPS, deadline=None)
    )
    threads, descriptors = in_use()
    assert threads <= before[0]  # those of other tests may end meanwhile
    assert descriptors <= before[1]
