"""Examine a machine: what it is, how fast its memory and storage are, and whether its kernels compute rightly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightpager.doctor import memory_read, storage
from weightpager.doctor.kernel_choice import KernelChoice, kernel_choice
from weightpager.doctor.machine import Bandwidth
from weightpager.doctor.processor import Processor, read_processor
from weightpager.doctor.self_test import SelfTest, cases, kernels_here, self_test
from weightpager.doctor.storage import Storage, directory_of, examine_storage
from weightpager.machine.memory import Memory, read_memory
from weightpager.progress import Progress


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        processor: its name and features.
        kernels: the kernels that can run, and the one that serves.
        memory: sizes of memory.
        memory_reads: the bandwidth of one thread, then of all of torch's if there are more.
        storage: the storage under the path that was asked for.
        self_tests: the self-test of every kernel, best first.
    """

    processor: Processor
    kernels: KernelChoice
    memory: Memory
    memory_reads: tuple[Bandwidth, ...]
    storage: Storage
    self_tests: tuple[SelfTest, ...]


def examine(path: Path, progress: Progress) -> Diagnosis:
    """Examine this machine and the storage under a path, in about ten seconds.

    Args:
        path: an existing directory, or a file in it; a temporary file is written there.
        progress: called with a stage's name, the steps done and their number.

    Raises:
        ConfigError: there is no such path, or ``WEIGHTPAGER_ISA`` names a kernel that can't run here.
    """
    directory, kernels, memory = directory_of(path), kernel_choice(), read_memory()
    return Diagnosis(
        processor=read_processor(),
        kernels=kernels,
        memory=memory,
        memory_reads=_read_memory(memory, kernels.threads, progress),
        storage=_examine_storage(directory, progress),
        self_tests=_test_kernels(progress),
    )


def _read_memory(memory: Memory, most_threads: int, progress: Progress) -> tuple[Bandwidth, ...]:
    size, counts = memory_read.probe_bytes(memory), sorted({1, most_threads})
    bandwidths = []
    for done, threads in enumerate(counts):
        progress("memory", done, len(counts))
        bandwidths.append(memory_read.kernel_read_bandwidth(size, threads))
    progress("memory", len(counts), len(counts))
    return tuple(bandwidths)


def _examine_storage(directory: Path, progress: Progress) -> Storage:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("storage", done, storage.STEPS)

    progress("storage", done, storage.STEPS)
    examined = examine_storage(directory, step)
    progress("storage", storage.STEPS, storage.STEPS)
    return examined


def _test_kernels(progress: Progress) -> tuple[SelfTest, ...]:
    kernels, tried = kernels_here(), cases()
    self_tests = []
    for name, kernel in kernels.items():
        # A stage of its own: should a kernel end the process, the last line of progress names it.
        progress(f"self-test of {name}", 0, 1)
        self_tests.append(self_test(name, kernel, tried))
        progress(f"self-test of {name}", 1, 1)
    return tuple(self_tests)
