"""Tensors in, tensors out: kernels as torch modules call them, on the host and on GPUs, and the reference."""

from weightpager.kernels.torch.device_weight import DeviceWeight, Weight
from weightpager.kernels.torch.dispatch import calls, isa, paged_gated, paged_linear

__all__ = ["DeviceWeight", "Weight", "calls", "isa", "paged_gated", "paged_linear"]
