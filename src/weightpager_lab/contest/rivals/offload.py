"""accelerate's disk offload: no weight stays in memory, every forward reads all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import disk_offload
from safetensors.torch import load_file
from torch import nn

from weightpager_lab.contest.rivals.assets import dense_path
from weightpager_lab.contest.rivals.parameters import private
from weightpager_lab.contest.rivals.rival import Setting
from weightpager_lab.contest.rivals.torch_rival import TorchRival, dense_module

TASKS = 2
"""Every switch costs the same, so a few tasks are enough; all of them would fill the disk once more."""


class DiskOffload(TorchRival):
    """Tasks' modules whose weights lie in files of accelerate's."""

    def __init__(self, setting: Setting) -> None:
        self._modules: dict[str, nn.Module] = {}
        self._folders: dict[str, Path] = {}
        for task in setting.tasks[:TASKS]:
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
