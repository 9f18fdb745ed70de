"""Tasks' low-rank parts on their way into a bundle's pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from weightpager.bundle.format.low_rank import LowRank, LowRankLayout
from weightpager.bundle.format.manifest import LowRankEntry, Manifest
from weightpager.bundle.format.page_file import PageIndex, file_counts, file_name
from weightpager.bundle.writer import BundleWriter


@dataclass(frozen=True)
class LowRankPages:
    """Pages that were written behind those of a bundle's blocks.

    Attributes:
        manifest: the bundle's, with these pages and the entries of the tasks that they belong to.
        index: of these pages alone.
    """

    manifest: Manifest
    index: PageIndex

    @classmethod
    def write(
        cls, writer: BundleWriter, manifest: Manifest, parts: Mapping[str, Mapping[str, LowRank]]
    ) -> LowRankPages:
        """Write tasks' low-rank parts into page files of their own.

        Parts of weights that a task does without are left out.

        Args:
            writer: of the bundle, whose page files so far are those that the manifest names.
            manifest: the bundle's, without these pages.
            parts: by task and paged weight; tasks that have none may be missing.

        Raises:
            CompileError: the storage refused a write.
        """
        dropped = manifest.dropped_weights()
        tasks = list(manifest.tasks)
        layouts: dict[int, LowRankLayout] = {}
        for number, task in enumerate(tasks):
            own = {name: part for name, part in parts.get(task.name, {}).items() if name not in dropped[task.name]}
            at = [at for at, weight in enumerate(manifest.weights) if weight.name in own]
            if not at:
                continue
            rank = max(len(part.down) for part in own.values())
            tasks[number] = replace(task, low_rank=LowRankEntry(rank=rank, weights=at))
            layout = LowRankLayout.of(manifest, tasks[number])
            assert layout is not None
            layouts[number] = layout
        pages = _content(layouts, manifest, parts)
        counts = file_counts(sum(layout.pages for layout in layouts.values()), manifest.page_bytes)
        ids: list[bytes] = []
        for number, count in enumerate(counts, len(manifest.page_files)):
            ids += writer.put_pages(file_name(number), pages, count, manifest.page_bytes)
        index = PageIndex(
            np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32),
            np.concatenate([np.zeros(0, np.int32), *(layout.page_layers() for layout in layouts.values())]),
            np.concatenate(
                [np.zeros(0, np.uint64)]
                + [np.full(layout.pages, 1 << number, np.uint64) for number, layout in layouts.items()]
            ),
        )
        return cls(replace(manifest, tasks=tasks, page_files=[*manifest.page_files, *counts]), index)


def _content(
    layouts: Mapping[int, LowRankLayout], manifest: Manifest, parts: Mapping[str, Mapping[str, LowRank]]
) -> Iterator[bytes]:
    for number, layout in layouts.items():
        yield from layout.content(parts[manifest.tasks[number].name], manifest.page_bytes)
