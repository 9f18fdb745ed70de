"""Measuring one method: cold switches of all ordered pairs, a trace, memory, and speed once a task is there."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from weightpager import kernels
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import transitions_of
from weightpager.doctor.cold import cold_read
from weightpager.errors import WeightpagerError
from weightpager.machine.memory import size_field
from weightpager.transitions import Transitions
from weightpager_lab.contest.prompt import TEXTS, Prompts
from weightpager_lab.contest.result import Found, Job, ProcessMemory, Sample, Visit
from weightpager_lab.contest.rivals.methods import Method
from weightpager_lab.contest.rivals.rival import Rival
from weightpager_lab.timing import intervals, seconds_of

_ROLLUP = {"resident": "Rss", "proportional": "Pss", "anonymous": "Anonymous"}


def memory_sizes(rollup: Path = Path("/proc/self/smaps_rollup")) -> dict[str, int]:
    """Bytes in memory by the names of `found.ProcessMemory`: resident, proportional and anonymous."""
    text = rollup.read_text()
    return {name: size_field(text, key) or 0 for name, key in _ROLLUP.items()}


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes of this process in memory; cheaper than `memory_sizes`."""
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE


def bytes_from_storage(io: Path = Path("/proc/self/io")) -> int:
    """Bytes that this process has had read from storage so far, by direct reads, buffered ones and mappings."""
    for line in io.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "read_bytes":
            return int(value)
    return 0


def circuit(tasks: Sequence[str], seed: int = 0) -> list[str]:
    """A walk in which every ordered pair of different tasks follows each other exactly once; it ends where it began.

    Hierholzer's algorithm on the complete directed graph, whose edges are taken in a random order.
    """
    random = np.random.default_rng(seed)
    rest = {task: [tasks[i] for i in random.permutation(len(tasks)) if tasks[i] != task] for task in tasks}
    walk: list[str] = []
    stack = [tasks[0]]
    while stack:
        if rest[stack[-1]]:
            stack.append(rest[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def random_walk(transitions: Transitions, steps: int, seed: int = 0) -> list[str]:
    """So many visits, each drawn from the row of the one before; the first is the likeliest task."""
    random = np.random.default_rng(seed)
    current = int(transitions.stationary().argmax())
    walk = [current]
    while len(walk) < steps:
        current = int(random.choice(len(transitions.tasks), p=transitions.matrix[current]))
        walk.append(current)
    return [transitions.tasks[task] for task in walk]


FORWARD_SECONDS = 0.5
LEAST_FORWARDS, MOST_FORWARDS = 3, 200
WRITTEN = 32
"""The most tokens that are drawn: with the prompt, a text that any model can read."""

SWITCH, VISIT, FORWARD, FIRST, WRITE = range(5)
"""What a prompt is for: the first part of its number."""

Ask = Callable[..., Mapping[str, Any]]
"""A task's prompt of a number, as the method takes it."""


def measure(rival: Rival, method: Method, bundle: Bundle, tasks: Sequence[str], job: Job) -> Found:
    """Measure a method that has been set up for these tasks.

    Raises:
        WeightpagerError: paged kernels should have run, and didn't.
    """
    before = rival.kernel_calls()
    prompts = Prompts(bundle, job.seed, Path(job.folder) / TEXTS)

    def ask(task: str, *number: int) -> Mapping[str, Any]:
        return rival.prepared(bundle.task(task), prompts.of(task, *number))

    for task in tasks:
        rival.run(rival.switch(task), ask(task, FIRST))  # what is built at first use isn't part of a switch
    warm = partial(_forwards, rival, tasks[0], ask)
    forwards = warm(0)
    samples, note = _pairs(rival, tasks, ask, job, lazy=method.lazy)
    forwards += warm(1)
    visits, doubt = _trace(rival, bundle, tasks, ask, job, statistics.median(forwards))
    forwards += warm(2)  # a virtual machine's cores are faster at one time than at another
    memory = ProcessMemory(weights=rival.weight_bytes(), paged=rival.paged_bytes(), **memory_sizes())
    return Found(
        samples=samples,
        cold_note=note or doubt,
        visits=visits,
        memory=memory,
        forwards=forwards,
        tokens=prompts.items(tasks[0]),
        written=_written(rival, tasks[0], prompts) if bundle.task(tasks[0]).writes else [],
        kernel=kernels.isa(),
        torch_threads=rival.threads(),
        backend=rival.backend,
        prompts=prompts.source,
        paced=job.pace is not None,
        calls=_kernel_calls(rival, before),
    )


def _kernel_calls(rival: Rival, before: Mapping[str, int] | None) -> dict[str, int]:
    """How often each paged kernel has run since; empty where none is counted."""
    now = rival.kernel_calls()
    if now is None or before is None:
        return {}
    ran = {name: count - before.get(name, 0) for name, count in now.items() if count > before.get(name, 0)}
    if kernels.isa() not in ran:
        raise WeightpagerError(
            f"expected the paged kernel of {kernels.isa()} to run while it was measured, found "
            f"{', '.join(ran) or 'none'} that ran; this is a fault of weightpager: report it"
        )
    return ran


def _pairs(rival: Rival, tasks: Sequence[str], ask: Ask, job: Job, *, lazy: bool) -> tuple[list[Sample], str]:
    """Cold switches with only the current task in memory; and why one of them wasn't cold, else an empty text."""
    walk = circuit(tasks, job.seed)
    count = job.repeats * (len(walk) - 1)
    samples: list[Sample] = []
    note = ""
    end = time.perf_counter() + job.seconds
    if count:
        rival.run(rival.switch(walk[0]), ask(walk[0], FIRST))
    for a, b in islice(cycle(pairwise(walk)), count):
        if len(samples) >= len(tasks) and time.perf_counter() > end:
            break
        rival.forget()
        inputs = ask(b, SWITCH, len(samples))
        with cold_read(rival.files(b)) as proof:
            samples.append(_switch(rival, a, b, inputs, lazy=lazy))
        note = note or proof.reason
    return samples, note


def _switch(rival: Rival, a: str, b: str, inputs: Mapping[str, Any], *, lazy: bool) -> Sample:
    read, faulted = bytes_from_storage(), rival.row_fault_seconds()
    start = time.perf_counter()
    module = rival.switch(b)
    ready = time.perf_counter() - start
    rival.run(module, inputs)
    first_output = time.perf_counter() - start
    faults = rival.row_fault_seconds()
    return Sample(
        from_task=a,
        to_task=b,
        ready=None if lazy else ready,
        first_output=first_output,
        bytes=bytes_from_storage() - read,
        row_faults=None if faults is None or faulted is None else faults - faulted,
    )


def _trace(
    rival: Rival, bundle: Bundle, tasks: Sequence[str], ask: Ask, job: Job, forward: float
) -> tuple[list[Visit], str]:
    """A random walk by the bundle's transitions. It starts cold; after that memory and page cache are left alone.

    Also says why it didn't start cold, if so. Where the walk begins is no visit: all methods leave the same task.
    """
    if not job.visits:
        return [], ""
    transitions = transitions_of(bundle.manifest).only(tasks)
    first, *walk = random_walk(transitions, 1 + job.visits, job.seed)
    visits: list[Visit] = []
    rival.run(rival.switch(first), ask(first, FIRST))
    rival.forget()
    with cold_read({file for task in tasks for file in rival.files(task)}) as proof:
        for task in walk:
            inputs = ask(task, VISIT, len(visits))
            read = bytes_from_storage()
            seconds = seconds_of(lambda: rival.run(rival.switch(task), inputs))  # noqa: B023 - called at once
            visits.append(
                Visit(
                    task=task,
                    waited=max(0.0, seconds - forward),
                    bytes=bytes_from_storage() - read,
                    weight_bytes=rival.weight_bytes(),
                    process_bytes=resident_bytes(),
                )
            )
    return visits, proof.reason


def _forwards(rival: Rival, task: str, ask: Ask, turn: int) -> list[float]:
    """Seconds of warm forwards, one after the other; each turn has other prompts."""
    module = rival.switch(task)
    found: list[float] = []
    rival.run(module, ask(task, FIRST))
    while len(found) < LEAST_FORWARDS or (len(found) < MOST_FORWARDS and sum(found) < FORWARD_SECONDS):
        inputs = ask(task, FORWARD, turn, len(found))
        found.append(seconds_of(partial(rival.run, module, inputs)))
    return found


def _written(rival: Rival, task: str, prompts: Prompts) -> list[float]:
    """Seconds of each token that is drawn behind a prompt, but for the first, which waits for the prompt."""
    rival.switch(task)
    found: list[float] = []
    for seconds in intervals(rival.write(task, prompts.of(task, WRITE, 0))):
        found.append(seconds)
        if len(found) >= LEAST_FORWARDS and (len(found) >= WRITTEN or sum(found) >= FORWARD_SECONDS):
            break
    return found
