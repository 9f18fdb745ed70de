"""Which backend runs a bundle's tasks."""

from __future__ import annotations

import os

from weightpager.backends.backend import Backend
from weightpager.bundle import Bundle
from weightpager.config import check_backend
from weightpager.errors import ConfigError
from weightpager.kernels import choice, isa
from weightpager.kernels.choice import REFERENCE
from weightpager.machine.packages import TORCH, is_installed, needing_torch
from weightpager.readers.image_reader import open_image_reader


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
    if isa() == REFERENCE or not bundle.has_graphs or bundle.manifest.block_dtypes - choice.READS:
        return False
    return not bundle.takes_images or open_image_reader(bundle) is not None
