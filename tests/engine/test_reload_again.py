"""A bundle changes many times while an engine has it open, by more pages than the engine has numbers for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits, room_for
from engines import InThread, check_pages, settle
from faults import FaultyStore, HangingStore
from released import Content, Releases, deleted_files
from repetitions import times
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import page_capacity
from weightpager.config import EngineConfig
from weightpager.engine import open_bundle
from weightpager.errors import BundleError, BusyError
from weightpager.store import LocalStore


@pytest.fixture
def releases(assistant_bundle: Path, tmp_path: Path) -> Releases:
    return Releases(assistant_bundle, tmp_path)


def fresh(path: Path) -> dict[str, torch.Tensor]:
    with wp.Engine.from_pretrained(path) as engine:
        return {task: logits(engine.activate(task)) for task in engine.bundle.tasks}


def check(engine: wp.Engine, expected: dict[str, torch.Tensor]) -> None:
    for task, wanted in expected.items():
        assert torch.equal(logits(engine.activate(task)), wanted), task
    engine.deactivate()
    check_pages(engine)


def pages_of(releases: Releases, task: str) -> np.ndarray:
    return Bundle.open(releases.path).pages_of(task)


def own_pages(releases: Releases, task: str) -> np.ndarray:
    bundle = Bundle.open(releases.path)
    return np.flatnonzero(bundle.pages.signatures == np.uint64(1 << bundle.task_numbers[task]))


def other_pages(releases: Releases, task: str) -> np.ndarray:
    return np.setdiff1d(np.arange(len(releases.pages)), pages_of(releases, task))


def to_variant(releases: Releases, pages: np.ndarray, number: int) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[pages] = releases.variant(pages, number)

    return change


@pytest.fixture
def few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly more numbers than a bundle whose pages all change needs, so that most are given again at once."""
    monkeypatch.setattr(open_bundle, "page_capacity", lambda bundle: 2 * len(bundle.pages) + 2)


@pytest.fixture
def least_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as pages of one task need that change, beside two that stay taken."""
    monkeypatch.setattr(open_bundle, "page_capacity", lambda bundle: len(bundle.pages) + 8)


def used_numbers(engine: wp.Engine) -> set[int]:
    return set(np.flatnonzero(engine._open._numbers._used).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_any_number_of_releases_is_taken_over_while_a_thread_stays_in_a_task(backend: str, releases: Releases) -> None:
    """All pages but those of the task that is in use come anew each time, and the older bundles are deleted."""
    before, wrong, stop = fresh(releases.path)["animal"], [], threading.Event()
    changing = other_pages(releases, "animal")
    capacity = page_capacity(Bundle.open(releases.path))

    def stay() -> None:
        with engine.task("animal") as module:
            entered.set()
            while not stop.wait(0.001):  # without a pause it would keep the interpreter from those who reload
                if backend == "torch" and not torch.equal(logits(module), before):
                    wrong.append(stop)

    def answers(opened: wp.Engine) -> dict[str, object]:
        return {task: opened.predict(task, ["ab cd ef", "gh"]) for task in TASKS}

    with wp.Engine.from_pretrained(releases.path, backend=backend) as engine:
        entered = threading.Event()
        thread = InThread(stay)
        assert entered.wait(60)
        descriptors = []
        try:
            for number in range(1, 3 + (capacity + len(changing)) // len(changing)):
                releases.release(to_variant(releases, changing, number))
                assert set(engine.reload().changed) == set(TASKS) - {"animal"}
                with wp.Engine.from_pretrained(releases.path, backend=backend) as other:
                    assert answers(engine) == answers(other)
                    if backend == "torch":
                        check(engine, {task: logits(other.activate(task)) for task in TASKS})
                engine.deactivate()
                check_pages(engine)
                descriptors.append(len(os.listdir("/proc/self/fd")))
                assert deleted_files() == []
        finally:
            stop.set()
            thread.result()
        assert number * len(changing) > capacity
    assert wrong == []
    assert len(set(descriptors[1:])) == 1


def random_change(releases: Releases, random: np.random.Generator, at: np.ndarray) -> Callable[[Content], None]:
    """Pages get a new content, one that they had before, or that of another page of their layer."""
    layers = Bundle.open(releases.path).pages.layers

    def change(content: Content) -> None:
        for page in random.choice(at, random.integers(1, len(at)), replace=False):
            if random.random() < 0.2:
                content[page] = content[random.choice(np.flatnonzero(layers == layers[page]))]
            else:
                content[page] = releases.variant(np.array([page]), int(random.choice([0, 1, 2, random.integers(1e4)])))[
                    0
                ]

    return change


@pytest.mark.slow
@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_those_of_a_new_engine_after_any_sequence_of_releases(seed: int, releases: Releases) -> None:
    random = np.random.default_rng(seed)
    bundle = Bundle.open(releases.path)
    largest = max(TASKS, key=lambda task: len(bundle.pages_of(task)))
    budget = None if seed == 0 else room_for(bundle, largest, spare=seed)
    with wp.Engine.from_pretrained(releases.path, budget=budget, prefetch=seed % 2 == 1) as engine:
        for _ in range(times(15)):
            before = fresh(releases.path)
            held = str(random.choice(TASKS)) if random.random() < 0.5 else None
            at = np.arange(len(releases.pages)) if held is None else other_pages(releases, held)
            if held is not None:
                module = engine.activate(held, wait=bool(random.integers(2)))
            elif random.integers(2):
                engine.prefetch(str(random.choice(TASKS)))
            releases.release(random_change(releases, random, at))
            engine.reload()
            if held is not None:
                assert torch.equal(logits(module), before[held])
            expected = fresh(releases.path)
            for task in random.choice(TASKS, 4):
                assert torch.equal(logits(engine.activate(str(task))), expected[str(task)]), task
            if random.integers(2):
                check(engine, expected)
            engine.deactivate()
        settle(engine)


@pytest.fixture
def hanging(releases: Releases) -> Iterator[tuple[wp.Engine, HangingStore]]:
    """An engine whose first store can be made to hang."""
    fresh(releases.path)  # what a first use imports may take longer, on a busy machine, than a read hangs
    stores: list[HangingStore] = []

    def open_store(bundle: Bundle) -> HangingStore | LocalStore:
        if stores:
            return LocalStore(bundle)
        stores.append(HangingStore(LocalStore(bundle)))
        return stores[0]

    with wp.Engine(Bundle.open(releases.path), EngineConfig(io_threads=64), open_store) as engine:
        try:
            yield engine, stores[0]
        finally:
            stores[0].resume()


@pytest.mark.usefixtures("least_numbers")
def test_the_number_of_a_page_on_its_way_names_no_other_page_until_it_has_come(
    hanging: tuple[wp.Engine, HangingStore], releases: Releases
) -> None:
    """Pages that the bundle goes on having are on their way, too: they come from the file where their read began."""
    (engine, store), own = hanging, own_pages(releases, "weather")
    store.hang()
    assert engine.prefetch("weather") <= 64  # a thread for each page
    end, threads = time.monotonic() + 60, engine._open._paging.pager._ways[-1]
    while threads._queue and time.monotonic() < end:  # type: ignore[attr-defined]
        time.sleep(0.005)
    for number in range(1, 4):
        releases.release(to_variant(releases, own, number))
        assert engine.reload().changed == ("weather",)
        coming = set(engine.blocks.reserved().tolist())
        assert set(own.tolist()) <= coming <= used_numbers(engine)
        assert not set(own.tolist()).intersection(engine.blocks.needs(engine._open.tasks["weather"].number).tolist())
    assert deleted_files()  # what hangs is still read from there
    store.resume()
    settle(engine)
    assert engine._residency.await_prefetch(20) is None
    check(engine, fresh(releases.path))
    releases.release(to_variant(releases, own, 9))
    engine.reload()
    assert used_numbers(engine) == set(engine._open._numbers.of(engine.bundle).tolist())
    assert deleted_files() == []
    check(engine, fresh(releases.path))


def test_a_page_that_is_being_repaired_keeps_its_number(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few numbers are free that the second reload would give this one to another page."""
    monkeypatch.setattr(open_bundle, "page_capacity", lambda bundle: len(bundle.pages) + 5)
    own = own_pages(releases, "weather")
    page = int(own[0])

    class Reloading(FaultyStore):
        during: Callable[[], None] | None = None

        def read(self, first: int, into: object) -> None:
            super().read(first, into)  # type: ignore[arg-type]
            if self.during is not None and first == page:
                during, self.during = self.during, None
                during()

    stores = []

    def open_store(bundle: Bundle) -> Reloading:
        stores.append(Reloading(LocalStore(bundle)))
        return stores[-1]

    def change_often() -> None:
        for number in range(1, 5):
            releases.release(to_variant(releases, own, number))
            engine.reload()
            engine.activate("weather")
            engine.deactivate()

    with wp.Engine(Bundle.open(releases.path), EngineConfig(), open_store) as engine:
        engine.activate("weather")
        engine.deactivate()
        engine._memory.arena.content(int(engine.blocks.page_table[page]))[0] ^= 1
        stores[0].during = change_often
        assert engine.repair() == [page]
        assert len(stores) == 5
        check(engine, fresh(releases.path))


def test_a_store_that_can_not_be_closed_ends_no_reload(releases: Releases, caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(FaultyStore):
        def close(self) -> None:
            super().close()
            raise OSError("the cable was pulled")

    kinds = iter([Stuck, FaultyStore])
    with wp.Engine(Bundle.open(releases.path), EngineConfig(), lambda at: next(kinds)(LocalStore(at))) as engine:
        releases.release(to_variant(releases, own_pages(releases, "weather"), 1))
        assert engine.reload().changed == ("weather",)
        assert "could not be closed: the cable was pulled" in caplog.text
        check(engine, fresh(releases.path))


def test_a_bundle_that_is_refused_changes_nothing(releases: Releases) -> None:
    expected = fresh(releases.path)
    with wp.Engine.from_pretrained(releases.path) as engine:
        check(engine, expected)
        weather = engine.activate("weather")
        for number in range(1, 6):
            releases.release(to_variant(releases, own_pages(releases, "weather"), number))
            with pytest.raises(BusyError):
                engine.reload()
            assert torch.equal(logits(weather), expected["weather"])
            check_pages(engine)
        engine.deactivate()
        engine.reload()
        check(engine, fresh(releases.path))


@pytest.mark.usefixtures("least_numbers")
def test_more_new_pages_than_there_is_room_for_are_refused_and_it_says_what_to_do(releases: Releases) -> None:
    expected = fresh(releases.path)
    with wp.Engine.from_pretrained(releases.path) as engine:
        check(engine, expected)
        releases.release(to_variant(releases, np.arange(43), 1))
        with pytest.raises(
            BundleError, match=r"at most 8 new pages beside the 43 .* room for 51 .* 43 new ones; close"
        ):
            engine.reload()
        check(engine, expected)
        releases.release(to_variant(releases, np.arange(43), 0))
        releases.release(to_variant(releases, own_pages(releases, "weather"), 1))
        assert engine.reload().changed == ("weather",)
        check(engine, fresh(releases.path))
