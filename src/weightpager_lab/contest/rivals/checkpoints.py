"""A checkpoint for each task, loaded whole at every switch or read anew at every forward: what people do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from weightpager.bundle import Bundle
from weightpager_lab.contest.rivals.assets import BLOCKS, dense_path, open_checkpoint, paged_bytes, sparse_path, split
from weightpager_lab.contest.rivals.parameters import private
from weightpager_lab.contest.rivals.rival import Setting
from weightpager_lab.contest.rivals.torch_rival import TorchRival, assign_values, dense_module, sparse_module
from weightpager_lab.direct_reads import DirectReader, new_buffer

Kind = Literal["dense", "sparse"]
_PATHS: dict[Kind, Callable[[Path, str], Path]] = {"dense": dense_path, "sparse": sparse_path}


class WholeCheckpoints(TorchRival):
    """Every switch reads the next task's whole checkpoint into memory that the last one had.

    Modules are built over that memory before anything is measured, so that a switch is the read alone: nothing is
    parsed, allocated or checked.

    Args:
        setting: of the contest.
        kind: which checkpoints.
        direct: read by several threads past the page cache, or else copied out of a mapping, as
            ``safetensors`` users do.
    """

    def __init__(self, setting: Setting, kind: Kind, *, direct: bool) -> None:
        bundle = setting.bundle
        self._files = {task: open_checkpoint(_PATHS[kind](setting.folder, task)) for task in setting.tasks}
        self._memory = memoryview(new_buffer(max(file.bytes for file in self._files.values())))
        self._reader = DirectReader(setting.threads, setting.reading) if direct else None
        self._current = next(iter(self._files))
        self._paged = {task: paged_bytes(file, bundle) for task, file in self._files.items()}
        self._views: dict[str, dict[str, Tensor]] = {}
        self._modules: dict[str, nn.Module] = {}
        for task, file in self._files.items():
            self._views[task] = views = file.views(self._memory)
            if kind == "dense":
                self._modules[task] = dense_module(bundle, task, views | private(bundle, task))
            else:
                self._load(task)  # paged weights check their tables
                self._modules[task] = _sparse_module(bundle, task, views)

    def switch(self, task: str) -> nn.Module:
        self._load(task)
        return self._modules[task]

    def files(self, task: str) -> list[Path]:
        return [self._files[task].path]

    def weight_bytes(self) -> int:
        return self._files[self._current].bytes

    def paged_bytes(self) -> int:
        return self._paged[self._current]

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _load(self, task: str) -> None:
        self._current, file = task, self._files[task]
        if self._reader is not None:
            self._reader.read(file.path, self._memory)
            return
        with safe_open(file.path, framework="pt") as tensors:
            for name, view in self._views[task].items():
                view.copy_(tensors.get_tensor(name))


class MappedCheckpoints(TorchRival):
    """Every switch maps the next task's dense checkpoint: its weights come when a layer first touches them."""

    def __init__(self, setting: Setting) -> None:
        bundle = setting.bundle
        self._paths = {task: dense_path(setting.folder, task) for task in setting.tasks}
        self._paged = {task: paged_bytes(open_checkpoint(path), bundle) for task, path in self._paths.items()}
        self._private = {task: private(bundle, task) for task in setting.tasks}
        self._modules = {}
        for task, path in self._paths.items():
            self._modules[task] = dense_module(bundle, task, load_file(path) | self._private[task])
        self._loaded: str | None = None
        for task in self._paths:
            self._unload(task)

    def switch(self, task: str) -> nn.Module:
        if self._loaded not in (None, task):
            self.forget()
        assign_values(self._modules[task], load_file(self._paths[task]) | self._private[task], task)
        self._loaded = task
        return self._modules[task]

    def forget(self) -> None:
        if self._loaded is not None:
            self._unload(self._loaded)
            self._loaded = None

    def files(self, task: str) -> list[Path]:
        return [self._paths[task]]

    def weight_bytes(self) -> int:
        return 0 if self._loaded is None else self._paths[self._loaded].stat().st_size

    def paged_bytes(self) -> int:
        return 0 if self._loaded is None else self._paged[self._loaded]

    def close(self) -> None:
        self.forget()

    def _unload(self, task: str) -> None:
        module = self._modules[task]
        nothing = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
        module.load_state_dict(nothing, assign=True)


def _sparse_module(bundle: Bundle, task: str, tensors: dict[str, Tensor]) -> nn.Module:
    """A module over a checkpoint in memory: every page lies in its own slot."""
    tables, values = split(tensors, bundle)
    blocks = tensors[BLOCKS]
    return sparse_module(bundle, task, tables, values, blocks, torch.arange(len(blocks), dtype=torch.int32))


OFFLOADED_TASKS = 2
"""Every switch costs the same, so a few tasks are enough; all of them would fill the disk once more."""


class DiskOffload(TorchRival):
    """accelerate's disk offload: no weight stays in memory, every forward reads all of them from files of its own."""

    def __init__(self, setting: Setting) -> None:
        from accelerate import disk_offload  # nothing else here needs it

        self._modules: dict[str, nn.Module] = {}
        self._folders: dict[str, Path] = {}
        for task in setting.tasks[:OFFLOADED_TASKS]:
            values = load_file(dense_path(setting.folder, task)) | private(setting.bundle, task)
            module = dense_module(setting.bundle, task, values)
            folder = setting.folder / f"{task}.offload"
            folder.mkdir(exist_ok=True)
            disk_offload(module, str(folder), torch.device("cpu"))
            self._modules[task], self._folders[task] = module, folder

    def switch(self, task: str) -> nn.Module:
        return self._modules[task]

    def files(self, task: str) -> list[Path]:
        return sorted(file for file in self._folders[task].iterdir() if file.suffix != ".json")

    def weight_bytes(self) -> int:
        return 0

    def paged_bytes(self) -> int:
        return 0
