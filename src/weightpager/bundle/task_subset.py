"""Some of a bundle's tasks on their way into another bundle: what can be taken over as it is, and what changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from weightpager.bundle.files.entry import check_file
from weightpager.bundle.format import row_table
from weightpager.bundle.format.manifest import Manifest, transitions_of
from weightpager.bundle.format.names import MODEL, REPORT, RESIDENT, private_file
from weightpager.bundle.format.placement import NOTHING_MOVED, Permutations
from weightpager.bundle.reader import Bundle
from weightpager.bundle.report.compile_report import has_report, read_report
from weightpager.bundle.report.page_statistics import mean_overlap, over_read, overlap, page_fill
from weightpager.bundle.writer import BundleWriter
from weightpager.errors import ConfigError
from weightpager.graph.file import FEATURES, kind_of_file


@dataclass(frozen=True)
class TaskSubset:
    """Tasks of a bundle, in its order."""

    bundle: Bundle
    names: tuple[str, ...]

    @classmethod
    def without(cls, bundle: Bundle, dropped: Iterable[str]) -> TaskSubset:
        """All tasks but these. Raises `UnknownTaskError`, or a `ConfigError` if none is left."""
        gone = {bundle.task(name).name for name in dropped}
        names = tuple(name for name in bundle.tasks if name not in gone)
        if not names:
            raise ConfigError(
                f"{bundle.path}: expected at least one task to stay, found none; delete the bundle instead"
            )
        return cls(bundle, names)

    @property
    def numbers(self) -> list[int]:
        return [self.bundle.task_numbers[name] for name in self.names]

    def signatures(self, signatures: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Signatures over the bundle's tasks as signatures over these."""
        renumbered = np.zeros_like(signatures)
        for number, before in enumerate(self.numbers):
            renumbered |= ((signatures >> np.uint64(before)) & np.uint64(1)) << np.uint64(number)
        return renumbered

    def manifest(self, *, page_bytes: int, page_files: list[int]) -> Manifest:
        """The bundle's manifest with these tasks and with other pages."""
        old = self.bundle.manifest
        tables = [
            replace(table, uses={task: table.uses[task] for task in self.names if task in table.uses})
            for table in old.row_tables
        ]
        files = [RESIDENT, *(private_file(name) for name in self.names)]
        stored = {entry.name for file in files for entry in self.bundle.whole_weights(file)}
        changes = {
            "row_tables": tables,
            "whole_weights": [entry for entry in old.whole_weights if entry.name in stored],
            "tasks": [self.bundle.task(name) for name in self.names],
            "transitions": transitions_of(old).only(self.names).matrix.tolist(),
            "page_bytes": page_bytes,
            "page_files": page_files,
        }
        return replace(old, **changes)

    def carry_over(self, writer: BundleWriter, added: Permutations = NOTHING_MOVED) -> None:
        """Take over the model, all parameters, the permutations and where rows lie; each file is checked.

        ``added`` are permutations of tasks which this bundle doesn't have.
        """
        wanted = {RESIDENT, row_table.FILE, *map(private_file, self.names)}
        kinds = {None, FEATURES, *(self.bundle.task(name).kind for name in self.names)}
        for name, entry in self.bundle.manifest.files.items():
            of_kind = kind_of_file(name)
            if name in wanted or (name.startswith(f"{MODEL}/") and of_kind in kinds):
                writer.link(name, check_file(self.bundle.path, name, entry))
        writer.put_permutations(Permutations({**self.bundle.permutations().only(self.names).orders, **added.orders}))

    def carry_over_rows(self, writer: BundleWriter) -> None:
        """Take over the page files of rows as they are."""
        for name in self.bundle.manifest.row_file_names():
            writer.link(name, self.bundle.path / name)

    def finish(self, writer: BundleWriter, manifest: Manifest) -> None:
        """Write the manifest and, if the bundle has a report, the parts of it that still hold."""
        writer.finish(manifest)
        if not has_report(self.bundle):
            return
        written = Bundle.open(writer.root)
        report = read_report(self.bundle)
        controls = [control.only(self.names) for control in report.controls if set(self.names) <= set(control.scores)]
        growth = report.growth
        kinds = {self.bundle.task(name).kind for name in self.names}
        changes = {
            "growth": growth if growth is not None and set(growth.tasks) <= set(self.names) else None,
            "tasks": [score for score in report.tasks if score.name in self.names],
            "added": [score for score in report.added if score.name in self.names],
            "mean_overlap": mean_overlap(overlap(written)),
            "page_bytes": written.page_bytes,
            "page_fill": page_fill(written),
            "over_read": over_read(written),
            "controls": controls,
            "fit": None,  # they speak of the tasks and the pages that there were
            "keep": None,
            "without_graph": {kind: why for kind, why in report.without_graph.items() if kind in kinds},
        }
        writer.put(REPORT, report.model_copy(update=changes).dump())
        writer.finish(manifest)
