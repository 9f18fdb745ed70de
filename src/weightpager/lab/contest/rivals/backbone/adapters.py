"""One dense backbone for all tasks with a PEFT adapter each: nothing to reload, all of it in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from weightpager.backends.torch.model.architecture import BASE
from weightpager.bundle import Bundle
from weightpager.lab.contest.rivals.backbone.dense import DenseBackbone
from weightpager.lab.contest.rivals.rival import Setting

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
