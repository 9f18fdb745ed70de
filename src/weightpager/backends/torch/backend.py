"""`TorchBackend`: a task as a torch module of transformers' architecture, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightpager.answers.model import CacheSize, ModelLimits
from weightpager.backends.task_parts import Parameters, TaskParts
from weightpager.backends.torch import architecture, parameters, task_module
from weightpager.backends.torch.generation import bytes_per_token, limits_of
from weightpager.backends.torch.parameters import Tensors
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle import Bundle
from weightpager.kernels.torch import isa
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer


class TorchBackend:
    """Implements `Backend`."""

    name = "torch"

    def __init__(self, bundle: Bundle, device: str) -> None:
        """Read all that modules are built from but parameters: the bundle may be replaced later.

        Raises:
            BundleFormatError: transformers can't build its model.
            BundleError, StoreError: tables of rows can't be read, which are whole on a GPU.
            ConfigError: ``WEIGHTPAGER_ISA`` names a kernel that can't run here.
        """
        self._device = torch.device(device)
        self.kernel = isa(self._device)  # what doesn't work here shows now, not at the first request
        self._config = architecture.read_config(bundle)
        self._pictures = bundle.pictures
        self._generation = architecture.read_generation(bundle, self._config)
        on_host = self._device.type == "cpu"
        self._whole_rows: dict[str, Tensor] = {} if on_host else parameters.device_rows(bundle, self._device)

    def place(self, stored: Parameters) -> Tensors:
        return parameters.placed(stored, self._device)

    def dtype(self, placed: Tensors) -> str:
        return parameters.dtype_name(parameters.activation_dtype(placed.values.values()))

    def limits(self, bundle: Bundle, itemsize: int) -> ModelLimits:
        task = next(iter(bundle.tasks.values()))
        return limits_of(architecture.empty_module(self._config, task), itemsize, bundle.pictures)

    def cache_size(self, task: nn.Module, itemsize: int) -> CacheSize:  # noqa: ARG002 - the interface's
        return CacheSize(bytes_per_token(self._config, itemsize))

    def reader(self, bundle: Bundle) -> Tokenizer | ImageReader:
        return architecture.input_reader(bundle)

    def model(self, task: nn.Module) -> TorchModel:
        return TorchModel(task, self._pictures)

    def rest(self) -> None:
        """Nothing of it computes."""

    def check(self, bundle: Bundle, placed: Mapping[str, Tensors]) -> None:
        """Nothing: what doesn't fit its architecture shows when that is built, which takes long."""

    def build(self, parts: TaskParts[Tensors]) -> nn.Module:
        module = task_module.build(parts, self._config, self._whole_rows)
        architecture.set_generation(module, self._generation)
        return module
