"""Tasks' low-rank parts on their way into a bundle's pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from weightpager.bundle.format.low_rank import LowRank, LowRankLayout, StoredParts
from weightpager.bundle.format.manifest import LowRankEntry, Manifest, TaskEntry
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
        """
        dropped = manifest.dropped_weights()
        tasks, stored = list(manifest.tasks), {}
        for number, task in enumerate(tasks):
            own = {name: part for name, part in parts.get(task.name, {}).items() if name not in dropped[task.name]}
            if not own:
                continue
            at = [at for at, weight in enumerate(manifest.weights) if weight.name in own]
            entry = LowRankEntry(rank=max(len(part.down) for part in own.values()), weights=at)
            tasks[number] = replace(task, low_rank=entry)
            stored[task.name] = _layout(manifest, tasks[number]).encoded(own)
        return cls.move(writer, replace(manifest, tasks=tasks), stored)

    @classmethod
    def move(cls, writer: BundleWriter, manifest: Manifest, stored: Mapping[str, StoredParts]) -> LowRankPages:
        """Write what other pages hold, so that no bit of it changes.

        Args:
            writer: as `write` takes it.
            manifest: the bundle's, without these pages; entries of the tasks say how their parts lie.
            stored: by task.
        """
        numbers = {task.name: number for number, task in enumerate(manifest.tasks)}
        layouts = {name: _layout(manifest, manifest.tasks[numbers[name]]) for name in stored}
        size = manifest.page_bytes
        pages = (page for name, layout in layouts.items() for page in layout.content(stored[name], size))
        counts = file_counts(sum(layout.pages for layout in layouts.values()), size)
        ids: list[bytes] = []
        for number, count in enumerate(counts, len(manifest.page_files)):
            ids += writer.put_pages(file_name(number), pages, count, size)
        index = PageIndex(
            np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32),
            np.concatenate([_NO_LAYERS, *(layout.page_layers() for layout in layouts.values())]),
            np.repeat(
                np.array([1 << numbers[name] for name in layouts], np.uint64),
                [layout.pages for layout in layouts.values()],
            ),
        )
        return cls(replace(manifest, page_files=[*manifest.page_files, *counts]), index)


_NO_LAYERS = np.zeros(0, np.int32)


def _layout(manifest: Manifest, task: TaskEntry) -> LowRankLayout:
    layout = LowRankLayout.of(manifest, task)
    assert layout is not None
    return layout
