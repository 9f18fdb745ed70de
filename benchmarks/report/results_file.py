"""``docs/results.json``: what `results` has measured, and `report` shows."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from benchmarks import row_file
from weightpager.bundle.report.compile_report import Document
from weightpager_lab.contest.figures import align_pack_share, figures
from weightpager_lab.contest.result import Contest


class GranularityRow(Document):
    """Switches of one bundle whose pages and blocks have these sizes; random weights.

    Attributes:
        model, tasks, sparsity, block, page_bytes: of the bundle.
        overlap: of the tasks, over all ordered pairs; None in rows of earlier versions.
        pages: that it has.
        page_fill: share of their bytes that some task uses.
        planned_bytes: of an average switch, over-read included.
        kept_bytes: the part of it that the next task uses and the last one doesn't keep.
        reads: of an average switch.
        direct_ms: of a switch, cold, past the page cache: the median, as all times are.
        buffered_ms: of the same reads through the page cache, cold.
        buffered_bytes: that storage delivered for them, read-ahead included.
        cached_ms: of the same reads once more, from the page cache.
        forward_ms: of a prompt.
        table_bytes: of all block tables, page index and page table.
        doubt: why reads may not have been cold; else empty.
        command, commit, cpu: that print the row, and what on; earlier rows don't have the processor.
    """

    model: str
    tasks: int
    sparsity: float
    overlap: float | None = None
    block: str
    page_bytes: int
    pages: int
    page_fill: float
    planned_bytes: int
    kept_bytes: int
    reads: float
    direct_ms: float
    buffered_ms: float
    buffered_bytes: int
    cached_ms: float
    forward_ms: float
    table_bytes: int
    doubt: str
    command: str
    commit: str
    cpu: str = ""


class ScalingRow(Document):
    """Switches of a bundle with so many tasks; random weights.

    Attributes:
        model, tasks, sparsity, overlap, page_bytes: of the bundle.
        task_bytes: of the largest task's pages: the smallest arena.
        stored_bytes: of all pages.
        separate_bytes: of one sparse checkpoint for each task.
        table_bytes: always in memory.
        switch_bytes: of an average switch.
        switch_ms: of an average switch, cold.
        switch_p99_ms: of the slowest ones.
        command, commit, cpu: that print the row, and what on; earlier rows don't have the processor.
    """

    model: str
    tasks: int
    sparsity: float
    overlap: float
    page_bytes: int
    task_bytes: int
    stored_bytes: int
    separate_bytes: int
    table_bytes: int
    switch_bytes: int
    switch_ms: float
    switch_p99_ms: float
    command: str
    commit: str
    cpu: str = ""


class CompileRow(Document):
    """One compile of the text assistant, without any training after its heads.

    Attributes:
        tasks: how many.
        calibration_items, calibration_tokens: of each task, and the most tokens of an item.
        seconds: by stage.
        stage_memory: most resident bytes of the process, by stage; empty if not measured.
        peak_memory: of the process, page cache included; None if not measured.
        duality_gap: of the alignment.
        command, commit, cpu: that print the row, and what on; earlier rows don't have the processor.
    """

    tasks: int
    calibration_items: int
    calibration_tokens: int
    seconds: dict[str, float]
    stage_memory: dict[str, int]
    peak_memory: int | None
    duality_gap: float
    command: str
    commit: str
    cpu: str = ""

    @property
    def align_pack_share(self) -> float:
        """`align_pack_share` of its seconds."""
        return align_pack_share(self.seconds)


class LargeCompileRow(Document):
    """A compile of a large model of random weights, in a control group of little memory.

    Attributes:
        shape, dtype, recover, compare, reorder, tasks: of the model and the task file.
        texts, tokens: of each task, and of each text.
        memory: bytes that the group had; None where that couldn't be enforced.
        peak_memory: of the group, page cache included; None if not measured.
        seconds: by stage.
        stage_memory: most resident bytes of the process, by stage; empty if not measured.
        stage_bound: bytes that were stated before the first stage, by stage.
        command, commit, cpu: that print the row, and what on; earlier rows don't have the processor.
    """

    shape: str
    dtype: str
    recover: str
    compare: str
    reorder: bool
    texts: int
    tokens: int
    tasks: int
    memory: int | None
    peak_memory: int | None
    seconds: dict[str, float]
    stage_memory: dict[str, int]
    stage_bound: dict[str, int]
    command: str
    commit: str
    cpu: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, bool]:
        """What there is one row of."""
        return self.shape, self.dtype, self.recover, self.compare, self.reorder


class Results(Document):
    """All of it; contests by what they are about."""

    contests: dict[str, Contest] = Field(default_factory=dict)
    large_compiles: list[LargeCompileRow] = Field(default_factory=list)
    granularity: list[GranularityRow] = Field(default_factory=list)
    scaling: list[ScalingRow] = Field(default_factory=list)
    compiling: CompileRow | None = None


def read(path: Path) -> Results:
    """A file's results; none if there is no file. Figures are what this version makes of the rows."""
    results = Results.model_validate_json(path.read_bytes()) if path.is_file() else Results()
    contests = {
        name: contest.model_copy(update={"figures": figures(contest)}) for name, contest in results.contests.items()
    }
    return results.model_copy(update={"contests": contests})


def write(path: Path, results: Results) -> None:
    """Put results in a file's place."""
    row_file.write_text(path, results.model_dump_json(indent=1) + "\n")
