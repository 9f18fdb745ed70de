"""Rivals that share a dense backbone: adapters, and a head for each task."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from weightpager.backends.torch.architecture import BASE, empty_module, read_config
from weightpager.backends.torch.export import dense_weights
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.progress import Progress
from weightpager_lab.contest.rivals.assets import dense_path, open_checkpoint, paged_bytes, write_checkpoint
from weightpager_lab.contest.rivals.parameters import (
    SCALE,
    int4_groups,
    int8_rows,
    pack_int4,
    private,
    put_into,
    resident,
    takes_int4,
)
from weightpager_lab.contest.rivals.rival import DTYPE, Setting
from weightpager_lab.contest.rivals.torch_rival import TorchRival, assign_values
from weightpager_lab.direct_reads import DirectReader, new_buffer

FewBits = Literal["int8", "int4"]


def quantised_path(folder: Path, dtype: FewBits) -> Path:
    return folder / f"shared.{dtype}.safetensors"


def write_quantised(bundle: Bundle, folder: Path, dtype: FewBits, progress: Progress) -> None:
    """Write it. The first task's weights are in it: only their size and place matter.

    Raises:
        BundleError, StoreError: the bundle is damaged.
        OSError: the storage refused it.
    """
    progress(f"write the {dtype} checkpoint", 0, 1)
    values = resident(bundle, dtype)
    for name, weight in dense_weights(bundle, next(iter(bundle.tasks))).items():
        fits = dtype == "int4" and takes_int4(weight)
        values[f"{name}.weight"], values[name + SCALE] = pack_int4(*int4_groups(weight)) if fits else int8_rows(weight)
    write_checkpoint(quantised_path(folder, dtype), values)
    progress(f"write the {dtype} checkpoint", 1, 1)


class DenseBackbone(TorchRival):
    """The dense model in memory once; a switch is the choice of a head.

    Args:
        setting: of the contest.
        dtype: of the paged weights. With fewer bits than bfloat16 has, embedding tables are in int8.
    """

    def __init__(self, setting: Setting, dtype: Literal["bfloat16", "int8", "int4"]) -> None:
        bundle, tasks = setting.bundle, setting.tasks
        path = dense_path(setting.folder, tasks[0]) if dtype == "bfloat16" else quantised_path(setting.folder, dtype)
        file = open_checkpoint(path)
        buffer = memoryview(new_buffer(file.bytes))
        reader = DirectReader(setting.threads, setting.reading)
        reader.read(file.path, buffer)
        reader.close()
        values = file.views(buffer)
        self.modules = {task: _module(bundle, task, values) for task in tasks}
        self._bytes = file.bytes + footprint(bundle, DTYPE).private
        self._paged = paged_bytes(file, bundle)

    def switch(self, task: str) -> nn.Module:
        return self.modules[task]

    def weight_bytes(self) -> int:
        return self._bytes

    def paged_bytes(self) -> int:
        return self._paged


def _module(bundle: Bundle, task: str, shared: dict[str, Tensor]) -> nn.Module:
    values = shared | private(bundle, task)
    module = empty_module(read_config(bundle), bundle.task(task))
    put_into(module, values)
    assign_values(module, values, task)
    return module


RANK = 8
"""Of every adapter, on every paged weight. Their values are random, since only speed and memory are measured."""


class SharedBackbone(DenseBackbone):
    """The dense model in memory once; a switch is ``set_adapter``. Arguments are those of `DenseBackbone`."""

    def __init__(self, setting: Setting, dtype: Literal["bfloat16", "int8"]) -> None:
        super().__init__(setting, dtype)
        base = _widest([_base(module) for module in self.modules.values()])
        for module in self.modules.values():
            setattr(module, str(module.base_model_prefix), base)
        self._adapters = {task: f"task{number}" for number, task in enumerate(self.modules)}
        self._peft = _with_adapters(base, setting.bundle, list(self._adapters.values()))
        added = [value for name, value in self._peft.named_parameters() if ".lora_" in name]
        self._adapter_bytes: int = sum(value.numel() * value.element_size() for value in added)

    def switch(self, task: str) -> nn.Module:
        self._peft.set_adapter(self._adapters[task])
        return super().switch(task)

    def weight_bytes(self) -> int:
        return super().weight_bytes() + self._adapter_bytes


def _base(module: nn.Module) -> nn.Module:
    return module.get_submodule(str(module.base_model_prefix))


def _widest(modules: Sequence[nn.Module]) -> nn.Module:
    """The one with the most parameters: some tasks' heads don't use a pooler, others need one."""
    return max(modules, key=lambda module: len(list(module.parameters())))


def _with_adapters(base: nn.Module, bundle: Bundle, names: Sequence[str]) -> PeftModel:
    targets = [weight.name.removeprefix(BASE) for weight in bundle.manifest.weights]
    config = LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft does to transformers
        model = PeftModel(base, config, names[0], autocast_adapter_dtype=False)
        for name in names[1:]:
            model.add_adapter(name, config, autocast_adapter_dtype=False)
    return model.to(torch.bfloat16).eval().requires_grad_(False)
