"""What `inspect` shows of a bundle, gathered without printing any of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from weightpager.bundle import Bundle, TaskKind
from weightpager.bundle.footprint import feature_bytes, row_memory
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.format.names import private_file
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.format.whole_weight import WholeWeightEntry
from weightpager.bundle.report.advice import Advice, advise
from weightpager.bundle.report.compile_report import CompileReport, TaskScore
from weightpager.bundle.report.page_statistics import (
    DroppedParts,
    ExpertsLeft,
    PagedShare,
    experts_left,
    mean_overlap,
    over_read,
    overlap,
    page_fill,
    paged_share,
)
from weightpager.runtime.budget import MemoryNeeds, largest_budget, needs_of, smallest_budget
from weightpager.store import LocalStore, StorageModel, SwitchCost, all_switches

_NO_GRAPHS = "the bundle has no report that says why; compile it again"


@dataclass(frozen=True)
class PageFacts:
    """A bundle's pages, and what they hold."""

    bundle: str
    block: str
    dtype: str
    page_bytes: int
    pages: int
    page_fill: float
    dense_paged_bytes: int
    stored_paged_bytes: int

    @classmethod
    def of(cls, bundle: Bundle) -> PageFacts:
        return cls(
            bundle=str(bundle.path),
            block=bundle.manifest.block,
            dtype=bundle.manifest.dtype,
            page_bytes=bundle.page_bytes,
            pages=len(bundle.pages),
            page_fill=page_fill(bundle),
            dense_paged_bytes=bundle.dense_bytes,
            stored_paged_bytes=len(bundle.pages) * bundle.page_bytes,
        )


@dataclass(frozen=True)
class RowFacts:
    """A table whose rows come on demand. ``hits`` is the share of look-ups that its most used rows serve, by part."""

    name: str
    rows: int
    columns: int
    stored_bytes: int
    memory_bytes: int
    lookups: float
    hits: Mapping[str, float]

    @classmethod
    def of(cls, entry: RowTableEntry) -> RowFacts:
        return cls(
            name=entry.name,
            rows=entry.rows,
            columns=entry.columns,
            stored_bytes=entry.bytes,
            memory_bytes=entry.rows * row_memory(entry),
            lookups=entry.lookups,
            hits={f"1/{part}": float(entry.served(1 / part)) for part in (32, 16, 8, 4, 2)},
        )


@dataclass(frozen=True)
class MemoryFacts:
    """What a bundle takes in memory.

    ``all_pages_budget`` holds all pages beside the least rows. ``row_bytes`` is what rows on demand get of the budget.
    """

    resident_bytes: int
    private_bytes: int
    tables_bytes: int
    block_tables_bytes: int
    expanded_tables_bytes: int
    smallest_budget: int
    all_pages_budget: int
    largest_budget: int
    rows: Sequence[RowFacts]
    least_row_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, bundle: Bundle, needs: MemoryNeeds, budget: int | None) -> MemoryFacts:
        """Measure a bundle; without a budget, as if it held everything."""
        fixed = needs.footprint
        every = largest_budget(bundle)
        return cls(
            resident_bytes=fixed.resident,
            private_bytes=fixed.private,
            tables_bytes=fixed.tables,
            block_tables_bytes=bundle.placement.nbytes,
            expanded_tables_bytes=fixed.largest_table,
            smallest_budget=smallest_budget(bundle),
            all_pages_budget=needs.holding(needs.pages).total,
            largest_budget=every,
            rows=[RowFacts.of(entry) for entry in bundle.manifest.row_tables],
            least_row_bytes=fixed.rows,
            row_bytes=needs.rows(every if budget is None else budget),
        )


@dataclass(frozen=True)
class PictureFacts:
    """The picture tower of tasks that read pictures among their words.

    Attributes:
        blocks: whether all tasks share it, so that a picture's features serve all of them, or each has its own.
        layers: of the tower.
        picture_tokens: tokens that a picture takes in a prompt at most.
        stored_bytes: of the tower's pages.
        kept_bytes: of one picture's features, kept for further questions.
    """

    blocks: str
    layers: int
    picture_tokens: int
    stored_bytes: int
    kept_bytes: int

    @classmethod
    def of(cls, bundle: Bundle, pictures: Pictures) -> PictureFacts:
        return cls(
            blocks=pictures.blocks,
            layers=pictures.layers,
            picture_tokens=pictures.tokens,
            stored_bytes=int((bundle.pages.layers < pictures.layers).sum()) * bundle.page_bytes,
            kept_bytes=feature_bytes(bundle),
        )


@dataclass(frozen=True)
class TaskFacts:
    """A task, how much of the dense weights it keeps, and what it drops whole."""

    name: str
    kind: TaskKind
    classes: int
    add_bos_token: bool
    system: str | None
    density: float
    dropped: DroppedParts
    kept_bytes: int
    pages: int
    page_bytes: int
    over_read: float
    private_bytes: int

    @classmethod
    def of(cls, bundle: Bundle, name: str, unused: float) -> TaskFacts:
        """Describe one of a bundle's tasks, which doesn't use such a share of its pages' bytes."""
        task = bundle.task(name)
        kept, pages = len(bundle.kept_locations(name)) * bundle.block_bytes, len(bundle.pages_of(name))
        return cls(
            name=name,
            kind=task.kind,
            classes=len(task.classes),
            add_bos_token=task.add_bos_token,
            system=task.system,
            density=kept / bundle.dense_bytes,
            dropped=DroppedParts.of(bundle, name),
            kept_bytes=kept,
            pages=pages,
            page_bytes=pages * bundle.page_bytes,
            over_read=unused,
            private_bytes=bundle.entry(private_file(name)).bytes,
        )


@dataclass(frozen=True)
class SwitchFacts:
    """Every switch between two tasks, and what doesn't fit into the budget."""

    overlap: Sequence[Sequence[float]]
    mean_overlap: float
    switches: Sequence[SwitchCost]
    budget: int | None
    pairs_that_do_not_fit: Sequence[tuple[str | None, str]]
    tasks_that_do_not_fit: Sequence[str]

    @classmethod
    def of(cls, bundle: Bundle, needs: MemoryNeeds, budget: int | None, bandwidth: float) -> SwitchFacts:
        """Plan every switch, from storage that reads ``bandwidth`` bytes a second."""
        switches, matrix = all_switches(bundle, StorageModel(bandwidth)), overlap(bundle)
        slots = math.inf if budget is None else needs.room(budget) // needs.page_bytes
        return cls(
            overlap=matrix.tolist(),
            mean_overlap=mean_overlap(matrix),
            switches=switches,
            budget=budget,
            pairs_that_do_not_fit=[
                (switch.from_task, switch.to_task) for switch in switches if switch.peak_pages > slots
            ],
            tasks_that_do_not_fit=[task for task in bundle.tasks if len(bundle.pages_of(task)) > slots],
        )


@dataclass(frozen=True)
class WholeWeightFacts:
    """A weight that is whole in memory, as blocks."""

    entry: WholeWeightEntry
    memory_bytes: int

    def plain(self) -> dict[str, Any]:
        """For JSON: the manifest entry's fields, and the bytes in memory."""
        return self.entry.plain() | {"memory_bytes": self.memory_bytes}


@dataclass(frozen=True)
class ModelFacts:
    """Which parts of the model are paged, have a graph, are tied or whole in memory, and why others aren't."""

    parameters: PagedShare
    experts: ExpertsLeft | None
    not_paged: Mapping[str, str]
    graphs: Sequence[TaskKind]
    without_graph: Mapping[str, str]
    measured_with: str | None
    tied: Mapping[str, Sequence[str]]
    whole_weights: Sequence[WholeWeightFacts]

    @classmethod
    def of(cls, bundle: Bundle, report: CompileReport | None) -> ModelFacts:
        manifest = bundle.manifest
        return cls(
            parameters=paged_share(bundle),
            experts=experts_left(bundle),
            not_paged=manifest.resident_reasons,
            graphs=bundle.graph_kinds,
            without_graph=_without_graph(bundle, report),
            measured_with=None if report is None else report.backend,
            tied={} if report is None else report.tied,
            whole_weights=[
                WholeWeightFacts(entry, entry.memory(manifest.block_shape)) for entry in manifest.whole_weights
            ],
        )

    def plain(self) -> dict[str, Any]:
        """For JSON: the fields, behind the share of the parameters that is paged."""
        return {
            "paged_share": self.parameters.share,
            **vars(self),
            "whole_weights": [weight.plain() for weight in self.whole_weights],
        }


@dataclass(frozen=True)
class BundleFacts:
    pages: PageFacts
    memory: MemoryFacts
    direct_io: bool
    tasks: Sequence[TaskFacts]
    switches: SwitchFacts
    model: ModelFacts
    scores: Sequence[TaskScore]
    advice: Advice | None
    pictures: PictureFacts | None = None

    @classmethod
    def of(cls, bundle: Bundle, report: CompileReport | None, budget: int | None, bandwidth: float) -> BundleFacts:
        """Gather the facts; ``bandwidth`` is that of the storage, in bytes a second."""
        needs = needs_of(bundle)
        unused = over_read(bundle)
        return cls(
            pages=PageFacts.of(bundle),
            memory=MemoryFacts.of(bundle, needs, budget),
            direct_io=_takes_direct_io(bundle),
            tasks=[TaskFacts.of(bundle, name, unused[name]) for name in bundle.tasks],
            switches=SwitchFacts.of(bundle, needs, budget, bandwidth),
            model=ModelFacts.of(bundle, report),
            scores=[] if report is None else [*report.tasks, *report.added],
            advice=None if report is None else advise(bundle, report, budget),
            pictures=None if bundle.pictures is None else PictureFacts.of(bundle, bundle.pictures),
        )

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def plain(self) -> dict[str, Any]:
        """For JSON: the parts' fields side by side."""
        return {
            **vars(self.pages),
            **vars(self.memory),
            "direct_io": self.direct_io,
            "tasks": self.tasks,
            "task_names": self.task_names,
            **vars(self.switches),
            **self.model.plain(),
            "scores": self.scores,
            "advice": self.advice,
            **({} if self.pictures is None else {"pictures": self.pictures}),
        }


def _takes_direct_io(bundle: Bundle) -> bool:
    """Whether the bundle's pages can be read past the page cache."""
    with closing(LocalStore(bundle)) as store:
        return store.direct


def _without_graph(bundle: Bundle, report: CompileReport | None) -> dict[str, str]:
    """The kinds of tasks that have no graph, and why."""
    known = {} if report is None else report.without_graph
    kinds = {task.kind for task in bundle.tasks.values()} - {*bundle.graph_kinds}
    return {kind: known.get(kind, _NO_GRAPHS) for kind in sorted(kinds)}
