"""What a method's process found: the JSON between it and the process that started it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from weightpager.bundle.report.document import Document

Source = Literal["one", "random", "held-out"]
"""Of prompts: one for all forwards, as earlier versions had it; random ones; pieces of the task's held-out texts."""


READY = "ready"
"""A file in the folder of a job: its method has been set up."""


class Job(Document):
    """What a process is asked to measure.

    Attributes:
        method: its name.
        bundle, folder: paths of the bundle and of the checkpoints.
        budget: bytes of memory for weights.
        threads: reads in flight.
        pace: bytes per second that reads are slowed down to by the process itself; None if by the kernel or nobody.
        seconds: after which no further pair is measured, once every task has been switched to.
        repeats: of every ordered pair; 0 for no pairs.
        visits: of the trace; 0 for no trace.
        tasks: how many of the bundle's, from the first on.
        seed: of orders and inputs.
    """

    method: str
    bundle: str
    folder: str
    budget: int
    threads: int
    pace: float | None
    seconds: float
    repeats: int
    visits: int
    tasks: int
    seed: int


class Sample(Document):
    """One switch.

    Attributes:
        from_task, to_task: the pair.
        ready: seconds until all weights are in memory; None where the method doesn't wait for that.
        first_output: seconds until the first output of a prompt.
        bytes: that the process got from storage meanwhile.
        row_faults: seconds of the first output that rows of tables were read for; None where none come on demand, and
            in results of earlier versions.
    """

    from_task: str
    to_task: str
    ready: float | None
    first_output: float
    bytes: int
    row_faults: float | None = None


class Visit(Document):
    """One visit of a trace.

    Attributes:
        task: visited.
        waited: seconds until the first output, less a warm forward of such prompts: what the switch cost.
        bytes: that the process got from storage.
        weight_bytes: of weights in memory afterwards.
        process_bytes: of the whole process in memory afterwards.
    """

    task: str
    waited: float
    bytes: int
    weight_bytes: int
    process_bytes: int


class ProcessMemory(Document):
    """Bytes of a process after all its switches.

    Attributes:
        weights: tables and adapters included.
        paged: the part of them that holds paged weights.
        resident: of the process in memory, shared libraries in full.
        proportional: the same, what several processes share divided among them.
        anonymous: the part that belongs to no file.
    """

    weights: int
    paged: int
    resident: int
    proportional: int
    anonymous: int


class Found(Document):
    """All that a process measured.

    Attributes:
        samples: of pairs.
        cold_note: why the first sample that wasn't proved cold wasn't, or else the trace; empty if all were.
        visits: of the trace.
        memory: at the end.
        forwards: seconds of warm forwards.
        tokens: in each of them; for images, one.
        written: seconds of each token that was drawn behind a prompt, one at a time; empty where tasks don't write, and
            in results of earlier versions.
        kernel: instruction set of weightpager's kernels.
        torch_threads: that computed, native code's where it did.
        paced: whether the process slowed its own reads down.
        backend: what computed, "torch" or "native"; torch in results of earlier versions.
        calls: how often each paged kernel has run, where torch ran ours; empty otherwise, and in earlier results.
        prompts: where they come from; in results of earlier versions there was one.
    """

    samples: list[Sample]
    cold_note: str
    visits: list[Visit]
    memory: ProcessMemory
    forwards: list[float]
    tokens: int
    kernel: str
    torch_threads: int
    paced: bool
    backend: str = "torch"
    calls: dict[str, int] = Field(default_factory=dict)
    written: list[float] = Field(default_factory=list)
    prompts: Source = "one"
