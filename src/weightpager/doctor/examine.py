"""Examine a machine: what it is, how fast its memory and storage are, and whether its kernels compute rightly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightpager.doctor import storage
from weightpager.doctor.kernels import KernelChoice, SelfTest, cases, kernel_choice, kernels_here, self_test
from weightpager.doctor.machine import Bandwidth, Processor, read_processor
from weightpager.doctor.storage import Storage, directory_of, examine_storage
from weightpager.kernels.choice import REFERENCE
from weightpager.machine.memory import Memory, read_memory
from weightpager.progress import Progress


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; ``memory_reads`` is the bandwidth of one thread, then of all of torch's if there are more."""

    processor: Processor
    kernels: KernelChoice
    memory: Memory
    memory_reads: tuple[Bandwidth, ...]
    storage: Storage
    self_tests: tuple[SelfTest, ...]


def examine(path: Path, progress: Progress) -> Diagnosis:
    """Examine this machine and the storage under a path, in about ten seconds; a temporary file is written there.

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
    size, counts = storage.read_bytes(memory), sorted({1, most_threads})
    bandwidths = []
    for done, threads in enumerate(counts):
        progress("memory", done, len(counts))
        bandwidths.append(storage.kernel_read_bandwidth(size, threads))
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


INSTALL_NATIVE = "install a C++ compiler (g++ or clang++), then weightpager again"


@dataclass(frozen=True)
class Readiness:
    """Whether the machine is ready, and what to fix.

    Attributes:
        ready: whether a kernel can run here, and every one that can computes rightly.
    """

    ready: bool
    words: str


def judge(found: Diagnosis) -> Readiness:
    """Judge what was found."""
    if not found.self_tests:
        way_out = f"{INSTALL_NATIVE}, or install 'weightpager[torch]'"
        return Readiness(False, f"not ready: no kernel can run here; {way_out}")
    wrong = [test.kernel for test in found.self_tests if test.failures]
    if wrong:
        return Readiness(False, f"not ready: {', '.join(wrong)} failed the self-test; {_way_out(found)}")
    slow = [*_slow_kernels(found), *_slow_storage(found)]
    if slow:
        return Readiness(True, f"ready, but {'; '.join(slow)}")
    kernel, threads = found.kernels.chosen, found.kernels.threads
    return Readiness(True, f"ready: kernel {kernel} on {threads} thread{'s' if threads > 1 else ''}")


def _way_out(found: Diagnosis) -> str:
    right = [test.kernel for test in found.self_tests if not test.failures]
    wrong = [test.kernel for test in found.self_tests if test.failures]
    if REFERENCE in wrong:
        return "the reference is torch itself: install another version of torch"
    if not right:
        return "report it, and install torch to run without the native kernels"
    return f"set WEIGHTPAGER_ISA={right[0]}, and report it"


def _slow_kernels(found: Diagnosis) -> list[str]:
    if found.kernels.missing:
        return [f"slow without the native kernels: {INSTALL_NATIVE}"]
    best = found.kernels.available[0]
    slow = []
    if found.kernels.chosen != best:
        slow.append(f"WEIGHTPAGER_ISA={found.kernels.chosen} holds back {best}: unset it for speed")
    return slow


def _slow_storage(found: Diagnosis) -> list[str]:
    if found.storage.direct is False:
        return [f"reads from {found.storage.directory} go through the page cache: keep bundles where O_DIRECT works"]
    if found.storage.problem:
        return [f"storage was not measured ({found.storage.problem}): name another directory with --path"]
    return []
