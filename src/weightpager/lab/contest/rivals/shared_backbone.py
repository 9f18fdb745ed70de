"""One dense backbone for all tasks with a PEFT adapter each: nothing to reload, all of it in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import private_file
from weightpager.engine.model.architecture import BASE, empty_module, full_name, read_config
from weightpager.lab.contest.rivals.assets import SCALE, dense_path, int8_path, paged_bytes, shipped
from weightpager.lab.contest.rivals.checkpoint_file import open_checkpoint
from weightpager.lab.contest.rivals.int8_linear import Int8Linear
from weightpager.lab.contest.rivals.modules import assign_values
from weightpager.lab.contest.rivals.rival import DTYPE, Rival, Setting
from weightpager.lab.direct_reader import DirectReader, new_buffer

RANK = 8
"""Of every adapter, on every paged weight. Their values are random, since only speed and memory are measured."""


class SharedBackbone(Rival):
    """The dense model in memory once; a switch is ``set_adapter``.

    Args:
        setting: of the contest.
        int8: whether the paged weights are in int8, or else in bfloat16.
    """

    def __init__(self, setting: Setting, *, int8: bool) -> None:
        bundle = setting.bundle
        tasks = list(setting.tasks)
        file = open_checkpoint(int8_path(setting.folder) if int8 else dense_path(setting.folder, tasks[0]))
        buffer = memoryview(new_buffer(file.bytes))
        reader = DirectReader(setting.threads, setting.reading)
        reader.read(file.path, buffer)
        reader.close()
        values = file.views(buffer)
        self._modules = {task: _module(bundle, task, values, int8=int8) for task in tasks}
        base = _widest([_base(module) for module in self._modules.values()])
        for module in self._modules.values():
            setattr(module, str(module.base_model_prefix), base)
        self._adapters = {task: f"task{number}" for number, task in enumerate(tasks)}
        self._peft = _with_adapters(base, bundle, list(self._adapters.values()))
        self._bytes = file.bytes + footprint(bundle, DTYPE).private + self._adapter_bytes()
        self._paged = paged_bytes(file, bundle)

    def switch(self, task: str) -> nn.Module:
        self._peft.set_adapter(self._adapters[task])
        return self._modules[task]

    def weight_bytes(self) -> int:
        return self._bytes

    def paged_bytes(self) -> int:
        return self._paged

    def _adapter_bytes(self) -> int:
        return sum(value.nbytes for name, value in self._peft.named_parameters() if ".lora_" in name)


def _module(bundle: Bundle, task: str, shared: dict[str, Tensor], *, int8: bool) -> nn.Module:
    values = shared | shipped(bundle, private_file(task))
    module = empty_module(read_config(bundle), bundle.task(task))
    for weight in bundle.manifest.weights if int8 else ():
        name = weight.name
        layer = Int8Linear(values[f"{name}.weight"], values[name + SCALE], values.get(f"{name}.bias"))
        module.set_submodule(full_name(module, name), layer)
    assign_values(module, values, task)
    return module


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
