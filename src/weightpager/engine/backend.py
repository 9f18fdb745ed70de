"""`Backend`: what runs the tasks of an open bundle."""

from __future__ import annotations

import os
from typing import Any, Protocol

from weightpager.answers.model import ModelLimits, TaskModel
from weightpager.backends.parameters import Parameters
from weightpager.backends.task_parts import TaskParts
from weightpager.bundle import Bundle
from weightpager.config import check_backend
from weightpager.errors import ConfigError
from weightpager.kernels import isa
from weightpager.kernels.choice import REFERENCE
from weightpager.machine.packages import TORCH, is_installed, needing_torch
from weightpager.readers.image_reader import ImageReader, open_image_reader
from weightpager.readers.tokenizer import Tokenizer


class Backend(Protocol):
    """Makes of a task's parts what a caller runs. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """The name by which it is asked for."""

    @property
    def kernel(self) -> str:
        """The kernel that multiplies by paged weights."""

    def place(self, stored: Parameters) -> Any:
        """Parameters where tasks read them, a `Placed`. The engine keeps nothing else of them."""

    def dtype(self, placed: Any) -> str:
        """What a task of such placed parameters computes in: "float32" or "bfloat16"."""

    def limits(self, bundle: Bundle, itemsize: int) -> ModelLimits:
        """What the bundle's model can read, and what that takes.

        Args:
            bundle: has the model.
            itemsize: bytes of a number that it computes with.
        """

    def reader(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """What reads the tasks' inputs, for one thread at a time.

        Raises:
            BundleFormatError: the bundle's files can't be read.
            ConfigError: the tasks read images, and Pillow isn't installed.
        """

    def model(self, task: Any) -> TaskModel:
        """What answers need of a task that `build` has made."""

    def build(self, parts: TaskParts[Any]) -> Any:
        """A task as its callers run it.

        Raises:
            BundleFormatError: the bundle's parameters don't make up the task.
        """


def open_backend(bundle: Bundle, asked: str, device: str) -> Backend:
    """What runs a bundle's tasks on a device.

    Args:
        bundle: has the tasks.
        asked: the backend that an `EngineConfig` states.
        device: where the arena is, as torch names it.

    Raises:
        ConfigError: what is asked for can't run here; says why.
        BundleError: a file that it needs is damaged.
    """
    if _chosen(bundle, asked, device) == "torch":
        return _torch(bundle, device)
    if device != "cpu":
        raise ConfigError(f"backend: 'native' runs on the CPU only; use the backend 'torch' on {device!r}")
    from weightpager.backends.native.backend import NativeBackend

    return NativeBackend(bundle)


def _torch(bundle: Bundle, device: str) -> Backend:
    with needing_torch("for the backend 'torch', or use the backend 'native'"):
        from weightpager.backends.torch.backend import TorchBackend
    return TorchBackend(bundle, device)


def _chosen(bundle: Bundle, asked: str, device: str) -> str:
    """The name of the backend: the one that is asked for, else native code where that can run the bundle's tasks."""
    if asked == "auto":
        asked = os.environ.get("WEIGHTPAGER_BACKEND") or "auto"
        check_backend(asked, "WEIGHTPAGER_BACKEND")
    if asked != "auto":
        return asked
    if device != "cpu":
        return "torch"
    return "native" if _native_runs(bundle) or not all(map(is_installed, TORCH)) else "torch"


def _native_runs(bundle: Bundle) -> bool:
    """Whether native code can run all of a bundle's tasks here."""
    if isa() == REFERENCE or any(task.kind not in bundle.graph_kinds for task in bundle.tasks.values()):
        return False
    return not bundle.takes_images or open_image_reader(bundle) is not None
