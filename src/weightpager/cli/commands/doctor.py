"""``weightpager doctor``: what this machine can do, and whether its kernels compute rightly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightpager.cli import output
from weightpager.cli.options import Json, Quiet
from weightpager.cli.progress import progress
from weightpager.machine.packages import is_installed

if TYPE_CHECKING:
    from weightpager.doctor.examine import Diagnosis
    from weightpager.doctor.kernels import KernelChoice, SelfTest
    from weightpager.doctor.machine import Bandwidth, Processor
    from weightpager.doctor.storage import Storage

_UNKNOWN = "unknown"


def doctor(
    path: Annotated[
        Path, typer.Option("--path", "-p", help="Directory on the storage where bundles will lie.")
    ] = Path(),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Examine this machine: processor, kernels, memory, storage, and whether every kernel computes rightly.

    Writes a temporary file of at most 128 MiB, and removes it. Exit code 1 if a kernel is wrong, or none can run.

    Example: `weightpager doctor --path /srv/bundles`
    """
    from weightpager.doctor.examine import examine, judge

    with progress(quiet or json) as stages:
        diagnosis = examine(path, stages)
    verdict = judge(diagnosis)
    if json:
        output.print_json(_document(diagnosis) | {"ready": verdict.ready, "verdict": verdict.words})
    else:
        _print(diagnosis)
        output.say(verdict.words)
        _print_next(diagnosis.storage)
    if not verdict.ready:
        raise typer.Exit(1)


def _document(diagnosis: Diagnosis) -> dict[str, Any]:
    """The findings for programs; sizes are in bytes."""
    memory, storage = diagnosis.memory, diagnosis.storage
    return {
        "processor": diagnosis.processor,
        "kernels": diagnosis.kernels,
        "memory": {
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes,
            "limit_bytes": memory.limit_bytes,
            "reads": [_bandwidth(read) for read in diagnosis.memory_reads],
        },
        "storage": {
            "directory": storage.directory.absolute(),
            "file_system": storage.kind,
            "source": storage.source,
            "direct_io": storage.direct,
            "sequential": storage.sequential and _bandwidth(storage.sequential),
            "pages": storage.pages and _bandwidth(storage.pages),
            "short": storage.short and _bandwidth(storage.short),
            "seconds_per_read": storage.seconds_per_read,
            "problem": storage.problem,
        },
        "self_tests": diagnosis.self_tests,
    }


def _bandwidth(read: Bandwidth) -> dict[str, Any]:
    slowest, fastest = read.spread
    return {
        "bytes_per_second": read.median,
        "slowest": slowest,
        "fastest": fastest,
        "total_bytes": read.total_bytes,
        "block_bytes": read.block_bytes,
        "threads": read.threads,
        "doubt": read.doubt,
    }


def _print(diagnosis: Diagnosis) -> None:
    output.facts("processor", _processor_rows(diagnosis.processor, diagnosis.kernels.threads))
    output.facts("kernels", _kernel_rows(diagnosis.kernels))
    output.facts("memory", _memory_rows(diagnosis))
    output.facts("storage", _storage_rows(diagnosis.storage))
    output.facts("self-test", [_self_test_row(test) for test in diagnosis.self_tests])
    for test in diagnosis.self_tests:
        for failure in test.failures:
            output.errors().print(f"{test.kernel}: {failure}", style="red")
    for note in _notes(diagnosis):
        output.say(f"note: {note}")


def _processor_rows(processor: Processor, threads: int) -> list[tuple[str, str]]:
    features = processor.features
    return [
        ("model", f"{processor.model or _UNKNOWN} ({processor.machine})"),
        ("usable cores", str(processor.usable_cores)),
        ("threads", str(threads)),
        ("has", _UNKNOWN if features is None else _names(features, has=True)),
        ("lacks", _UNKNOWN if features is None else _names(features, has=False)),
    ]


def _names(features: dict[str, bool], *, has: bool) -> str:
    return ", ".join(name for name, present in features.items() if present == has) or "-"


def _kernel_rows(kernels: KernelChoice) -> list[tuple[str, str]]:
    best = "the best here" if kernels.available else "which needs torch"
    why = "named by WEIGHTPAGER_ISA" if kernels.asked else best
    return [
        ("can run, best first", ", ".join(kernels.available) or "none"),
        ("chosen", f"{kernels.chosen} ({why})"),
        ("serves float32", kernels.exact),
        ("threading", kernels.threading),
        ("native module", f"missing: {kernels.missing}" if kernels.missing else "there"),
        ("on a GPU", kernels.gpu or ("torch sees none" if is_installed("torch") else "torch isn't installed")),
    ]


def _memory_rows(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    memory = diagnosis.memory
    sizes = [("total", memory.total_bytes), ("available", memory.available_bytes)]
    if memory.limit_bytes is not None:
        sizes.append(("limit of the control group", memory.limit_bytes))
    rows = [(name, _UNKNOWN if size is None else output.size(size)) for name, size in sizes]
    return rows + [(f"read by {_threads(read)}", output.bandwidth(read.median)) for read in diagnosis.memory_reads]


def _storage_rows(storage: Storage) -> list[tuple[str, str]]:
    rows = [
        ("directory", str(storage.directory.absolute())),
        ("file system", f"{storage.kind} on {storage.source}" if storage.kind else _UNKNOWN),
        ("O_DIRECT", _direct(storage)),
    ]
    speeds = [(read, output.bandwidth(read.median)) for read in (storage.sequential, storage.pages) if read is not None]
    if storage.short is not None:
        speeds.append((storage.short, f"{_milliseconds(storage.short)} ms a read"))
    return rows + [
        (f"direct reads of {output.size(read.block_bytes)}, {_threads(read)}", speed) for read, speed in speeds
    ]


def _milliseconds(read: Bandwidth) -> str:
    return f"{read.block_bytes / read.median * 1e3:.2f}"


def _print_next(storage: Storage) -> None:
    """The command that plans switches from this storage, if it was measured without doubt."""
    if storage.pages is None or storage.short is None or storage.pages.doubt or storage.short.doubt:
        return
    speed = max(1, round(storage.pages.median / 1e6))
    measured = f"--storage {speed}MB/s --read-latency {_milliseconds(storage.short)}ms"
    output.next_step(f"weightpager plan BUNDLE --worst {measured}")


def _self_test_row(test: SelfTest) -> tuple[str, str]:
    failed = len(test.failures)
    return test.kernel, f"{failed} of {test.checks} products wrong" if failed else f"ok, {test.checks} products"


def _notes(diagnosis: Diagnosis) -> list[str]:
    """Notes on the figures, each once."""
    reads = [*diagnosis.memory_reads, *_reads(diagnosis.storage)]
    texts = [_busy(diagnosis.memory_reads), diagnosis.storage.problem, *(read.doubt for read in reads)]
    return list(dict.fromkeys(text for text in texts if text))


def _busy(reads: tuple[Bandwidth, ...]) -> str:
    one, most = reads[0], reads[-1]
    if most.median >= one.median:
        return ""
    why = "other programs keep the cores busy, or there are fewer cores than it seems"
    return f"{_threads(most)} read slower than one: {why}"


def _direct(storage: Storage) -> str:
    if storage.direct is None:
        return "not tried"
    if not storage.direct:
        return "does not work"
    return "accepted, but see the note" if any(read.doubt for read in _reads(storage)) else "works"


def _reads(storage: Storage) -> list[Bandwidth]:
    return [read for read in (storage.sequential, storage.pages, storage.short) if read is not None]


def _threads(read: Bandwidth) -> str:
    return f"{read.threads} thread{'s' if read.threads > 1 else ''}"
