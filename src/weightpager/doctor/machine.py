"""A machine's processor, and how fast its storage and memory are."""

from __future__ import annotations

import errno
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightpager.doctor.cold import cold_read
from weightpager.errors import ConfigError, StoreError
from weightpager.machine.processor import usable_cores
from weightpager.machine.storage import ALIGNMENT, DirectFile, aligned_memory

_ASKED_FOR = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_bf16"),
    "aarch64": ("asimd", "bf16"),
}
"""By machine: the features that decide which kernels run, as Linux names them."""

_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Processor:
    """What is known of a processor; None where unknown.

    Attributes:
        machine: its architecture, such as ``"x86_64"``.
        features: those of the features that kernels ask for which it has.
    """

    model: str | None
    machine: str
    usable_cores: int
    features: dict[str, bool] | None


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """This machine's processor; a system without ``/proc/cpuinfo`` leaves name and features unknown."""
    return parse_processor(read_cpuinfo(cpuinfo), platform.machine(), usable_cores())


def read_cpuinfo(file: Path = Path("/proc/cpuinfo")) -> str:
    """The text that describes the processor; empty on a system without such a file."""
    try:
        return file.read_text()
    except OSError:
        return ""


def parse_processor(cpuinfo: str, machine: str, usable_cores: int) -> Processor:
    """The processor that the text of ``/proc/cpuinfo`` describes."""
    machine = _SAME.get(machine.lower(), machine)
    asked, flags = _ASKED_FOR.get(machine), cpu_flags(cpuinfo)
    features = {name: name in flags for name in asked} if asked and flags else None
    return Processor(cpu_model(cpuinfo), machine, usable_cores, features)


def cpu_model(cpuinfo: str) -> str | None:
    """Name of the first CPU that ``/proc/cpuinfo`` lists: on Arm the numbers of its implementer and part."""
    fields = _first_cpu(cpuinfo)
    numbers = " ".join(fields[key] for key in ("CPU implementer", "CPU part") if key in fields)
    return fields.get("model name") or numbers or None


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Features of the first CPU that ``/proc/cpuinfo`` lists."""
    fields = _first_cpu(cpuinfo)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _first_cpu(cpuinfo: str) -> dict[str, str]:
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


@dataclass(frozen=True)
class Bandwidth:
    """Bytes read per second, measured several times.

    Attributes:
        block_bytes: bytes that are asked for at once.
        seconds: the time that each run took, in order.
        doubt: why the figures may not be what they claim, such as a cache that couldn't be dropped; else empty.
    """

    total_bytes: int
    block_bytes: int
    threads: int
    seconds: tuple[float, ...]
    doubt: str = ""

    @property
    def median(self) -> float:
        """Bytes per second of the median run."""
        return self.total_bytes / statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Bytes per second of the slowest and of the fastest run."""
        return self.total_bytes / max(self.seconds), self.total_bytes / min(self.seconds)


def direct_read_bandwidth(
    path: Path, total_bytes: int, block_bytes: int, threads: int = 1, *, repeats: int = 5
) -> Bandwidth:
    """How fast the start of a file comes from storage: sequential O_DIRECT reads into aligned memory.

    The threads take the blocks of one sequence in turn. What the file system does behind O_DIRECT is checked: page
    cache found after a run means that it wasn't direct, and is said in `Bandwidth.doubt`.

    Raises:
        ConfigError: sizes that don't fit each other or the file, or a file with holes, which no disk is asked for.
        StoreError: the file can't be read, or its file system has no O_DIRECT.
    """
    _check_sizes(path, total_bytes, block_bytes, threads)
    seconds: list[float] = []
    doubts: dict[str, None] = {}
    for _ in range(repeats):
        with cold_read([path]) as proof:
            seconds.append(_read_direct(path, total_bytes, block_bytes, threads))
        left = f"not direct: the reads left {proof.left_bytes} bytes in the page cache" if proof.left_bytes else ""
        doubts |= {text: None for text in (proof.reason, left) if text}
    return Bandwidth(total_bytes, block_bytes, threads, tuple(seconds), "; ".join(doubts))


def memory_read_bandwidth(total_bytes: int = 256 << 20, threads: int | None = None, *, repeats: int = 5) -> Bandwidth:
    """How fast memory can be read: sums over an array that should be much larger than the last-level cache.

    ``threads`` of None takes all usable cores. One run more, before all others, isn't counted.
    """
    workers = threads or usable_cores()
    parts = np.array_split(np.ones(total_bytes // 8, np.uint64), workers)
    with ThreadPoolExecutor(workers) as pool:
        seconds = [_seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(repeats + 1)]
    return Bandwidth(total_bytes // 8 * 8, total_bytes // workers, workers, tuple(seconds[1:]))


def _check_sizes(path: Path, total_bytes: int, block_bytes: int, threads: int) -> None:
    if block_bytes <= 0 or block_bytes % ALIGNMENT:
        raise ConfigError(f"block_bytes: expected a multiple of {ALIGNMENT}, got {block_bytes}")
    if total_bytes <= 0 or total_bytes % block_bytes:
        raise ConfigError(f"total_bytes: expected a multiple of block_bytes, {block_bytes}, got {total_bytes}")
    if threads < 1:
        raise ConfigError(f"threads: expected at least one, got {threads}")
    facts = path.stat()
    if facts.st_size < total_bytes:
        raise ConfigError(f"{path}: expected at least {total_bytes} bytes, got {facts.st_size}")
    if facts.st_blocks * 512 < total_bytes:
        raise ConfigError(f"{path}: expected {total_bytes} bytes on disk, got {facts.st_blocks * 512}: it has holes")


def _read_direct(path: Path, total_bytes: int, block_bytes: int, threads: int) -> float:
    """Seconds that the threads need for all blocks; opening isn't counted."""
    try:
        file = DirectFile(path, cached=False)
    except OSError as error:
        why = "its file system has no O_DIRECT" if error.errno == errno.EINVAL else error.strerror
        raise StoreError(f"cannot open {path}: {why}") from error
    buffers = [memoryview(aligned_memory(block_bytes)) for _ in range(threads)]

    def read(worker: int) -> None:
        for offset in range(worker * block_bytes, total_bytes, threads * block_bytes):
            _read_block(file, buffers[worker], offset)

    try:
        with closing(file), ThreadPoolExecutor(threads) as pool:
            return _seconds(lambda: list(pool.map(read, range(threads))))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def _read_block(file: DirectFile, buffer: memoryview, offset: int) -> None:
    count = file.read([buffer], offset)
    if count != len(buffer):
        raise StoreError(f"expected {len(buffer)} bytes at {offset}, got {count}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
