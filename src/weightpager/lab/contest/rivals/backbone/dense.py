"""One dense model for all tasks with a head each: nothing to load at a switch, all of it in memory."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from weightpager.backends.torch.model.architecture import empty_module, read_config
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.lab.contest.rivals.assets import dense_path, paged_bytes
from weightpager.lab.contest.rivals.backbone.checkpoint import quantised_path
from weightpager.lab.contest.rivals.checkpoint_file import open_checkpoint
from weightpager.lab.contest.rivals.few_bits.replacement import put_into
from weightpager.lab.contest.rivals.modules import assign_values
from weightpager.lab.contest.rivals.parameters import private
from weightpager.lab.contest.rivals.rival import DTYPE, Setting
from weightpager.lab.contest.rivals.torch_rival import TorchRival
from weightpager.lab.direct_reader import DirectReader, new_buffer


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
