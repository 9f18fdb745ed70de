"""Sparse checkpoints of which only paged weights are loaded: the strict baselines, and an LRU of whole tasks."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager_lab.contest.rivals.assets import (
    BLOCKS,
    CheckpointFile,
    open_checkpoint,
    read_shared,
    read_tables,
    sparse_path,
    tower_pages,
)
from weightpager_lab.contest.rivals.parameters import fixed_bytes, private
from weightpager_lab.contest.rivals.rival import DTYPE, Setting
from weightpager_lab.contest.rivals.torch_rival import TorchRival, sparse_module
from weightpager_lab.direct_reads import DirectReader, new_buffer


class SparseTasks(TorchRival):
    """Whole tasks in as many places as the budget has; the least recently used one makes room.

    Everything but the blocks stays in memory for all tasks. Modules are built beforehand, so that a switch is the read.

    Args:
        setting: of the contest.
        places: tasks in memory; None for as many as the budget holds, at least one.
        language: whether a picture tower that all tasks share stays in memory, too, and a switch reads the rest.
    """

    def __init__(self, setting: Setting, *, places: int | None = None, language: bool = False) -> None:
        bundle = setting.bundle
        self._table_bytes = {task: bundle.placement.table_bytes(bundle.task_numbers[task]) for task in setting.tasks}
        self._files = {task: open_checkpoint(sparse_path(setting.folder, task)) for task in setting.tasks}
        shared = read_shared(self._files, bundle)
        self._fixed = fixed_bytes(bundle, shared)
        self._page_bytes = bundle.page_bytes
        self._always = tower_pages(bundle, setting.tasks[0]) if language else 0
        self._most = max(_pages(file) for file in self._files.values()) - self._always
        size = self._most * bundle.page_bytes
        room = setting.budget - footprint(bundle, DTYPE).total  # the budget was made with our tables
        places = places or max(1, min(len(setting.tasks), room // size))
        whole = (self._always + places * self._most) * bundle.page_bytes
        self._memory = memoryview(new_buffer(whole))
        self._reader = DirectReader(setting.threads, setting.reading)
        if self._always:
            first = self._files[setting.tasks[0]]
            self._reader.read(first.path, self._memory, first.places[BLOCKS].start, self._always * bundle.page_bytes)
        self._free = list(range(places))
        self._places: OrderedDict[str, int] = OrderedDict()  # the last one is the current task
        arena = torch.frombuffer(self._memory, dtype=torch.uint8)[:whole].view(-1, bundle.page_bytes)
        self._tables = {task: torch.arange(_pages(file), dtype=torch.int32) for task, file in self._files.items()}
        masks = {task: task for task in setting.tasks}
        self._modules = modules_over(bundle, masks, self._files, shared, arena, self._tables)

    def switch(self, task: str) -> nn.Module:
        if task not in self._places:
            place = self._free.pop() if self._free else self._places.popitem(last=False)[1]
            self._read(task, place)
            self._places[task] = place
        self._places.move_to_end(task)
        return self._modules[task]

    def forget(self) -> None:
        while len(self._places) > 1:
            self._free.append(self._places.popitem(last=False)[1])

    def files(self, task: str) -> list[Path]:
        return [self._files[task].path]

    def weight_bytes(self) -> int:
        return self._fixed + self.paged_bytes() + sum(self._table_bytes[task] for task in self._places)

    def paged_bytes(self) -> int:
        own = sum(_pages(self._files[task]) - self._always for task in self._places)
        return (self._always + own) * self._page_bytes

    def close(self) -> None:
        self._reader.close()

    def _read(self, task: str, place: int) -> None:
        blocks = self._files[task].places[BLOCKS]
        start, skipped = place * self._most, self._always * self._page_bytes
        into = self._memory[(self._always + start) * self._page_bytes :][: self._most * self._page_bytes]
        self._reader.read(self._files[task].path, into, blocks.start + skipped, blocks.end - blocks.start - skipped)
        pages = torch.arange(self._always, len(self._tables[task]), dtype=torch.int32)
        self._tables[task][self._always :].copy_(pages + start)


class SharedMask(TorchRival):
    """One mask for all tasks: the first task's blocks serve every task, and a switch reads nothing.

    Its answers are wrong for the other tasks, whose blocks they aren't; only speed and memory are measured here.
    """

    def __init__(self, setting: Setting) -> None:
        bundle = setting.bundle
        first = setting.tasks[0]
        files = {task: open_checkpoint(sparse_path(setting.folder, task)) for task in setting.tasks}
        blocks = files[first].places[BLOCKS]
        memory = memoryview(new_buffer(blocks.end - blocks.start))
        reader = DirectReader(setting.threads, setting.reading)
        self._paged = reader.read(files[first].path, memory, blocks.start, blocks.end - blocks.start)
        reader.close()
        arena = torch.frombuffer(memory, dtype=torch.uint8)[: self._paged].view(-1, bundle.page_bytes)
        tables = dict.fromkeys(setting.tasks, torch.arange(len(arena), dtype=torch.int32))
        shared = read_shared(files, bundle)
        self._modules = modules_over(bundle, dict.fromkeys(setting.tasks, first), files, shared, arena, tables)
        self._fixed = fixed_bytes(bundle, shared) + bundle.placement.table_bytes(bundle.task_numbers[first])

    def switch(self, task: str) -> nn.Module:
        return self._modules[task]

    def weight_bytes(self) -> int:
        return self._fixed + self._paged

    def paged_bytes(self) -> int:
        return self._paged


def modules_over(
    bundle: Bundle,
    masks: dict[str, str],
    files: dict[str, CheckpointFile],
    shared: dict[str, Tensor],
    arena: Tensor,
    page_tables: dict[str, Tensor],
) -> dict[str, nn.Module]:
    """All tasks' modules over one arena; parameters and tables that tasks share are in memory once.

    Args:
        bundle: of the tasks.
        masks: task → the task whose blocks it uses.
        files: the tasks' sparse checkpoints.
        shared: what all tasks share, by canonical name.
        arena: uint8 [slots, page_bytes].
        page_tables: by task.
    """
    tables = {owner: read_tables(files[owner], bundle) for owner in dict.fromkeys(masks.values())}
    modules = {}
    for task, owner in masks.items():
        values = shared | private(bundle, task)
        modules[task] = sparse_module(bundle, task, tables[owner], values, arena, page_tables[task])
    return modules


def _pages(file: CheckpointFile) -> int:
    return file.places[BLOCKS].shape[0]
