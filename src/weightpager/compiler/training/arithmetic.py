"""The settings of torch that two processes must share for bit-equal results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightpager.compiler.training.device import multiplies_in_bfloat16, state_bfloat16


@dataclass(frozen=True)
class Arithmetic:
    """How a process computes on a CPU.

    Attributes:
        threads: torch's number of threads, among which sums are split.
        bfloat16: whether matrices are multiplied in bfloat16. A trial says so, and a busy machine may answer otherwise.
        deterministic: whether torch keeps to algorithms that give the same at every run.
        precision: the precision of float32's products, as torch names it.
    """

    threads: int
    bfloat16: bool
    deterministic: bool
    precision: str

    @classmethod
    def here(cls) -> Arithmetic:
        """How this process computes."""
        return cls(
            torch.get_num_threads(),
            multiplies_in_bfloat16(torch.device("cpu")),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )

    def take(self) -> None:
        """Set this process, and the thread that calls, to compute in this way."""
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_float32_matmul_precision(self.precision)
        state_bfloat16(self.bfloat16)
