"""The settings that a worker must share with the driver for bit-equal results."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import tokenizers
import torch
import transformers

import weightpager
from weightpager.compiler.resume.identities import own_code
from weightpager.compiler.training.arithmetic import Arithmetic
from weightpager.errors import ConfigError
from weightpager.kernels import isa
from weightpager.kernels.torch.kept_blocks import products

_PREFIXES = (
    "ATEN_", "BLIS_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TOKENIZERS_", "TORCH_",
    "TRANSFORMERS_", "WEIGHTPAGER_",
)  # fmt: skip

_SECRETS = ("_KEY", "_SECRET", "_TOKEN")
"""Ends of the names of variables that stay here: Ray shows a worker's variables to whoever looks at the cluster."""


@dataclass(frozen=True)
class Surroundings:
    """The settings of one process.

    Attributes:
        versions: versions of packages, by name.
        processor: what torch uses of the processor.
        arithmetic: how the process computes.
    """

    versions: Mapping[str, str]
    processor: str
    arithmetic: Arithmetic

    @classmethod
    def here(cls) -> Surroundings:
        """The settings of this process."""
        return cls(_versions(), _processor(), Arithmetic.here())

    def take(self, node: str) -> None:
        """Have this process, on ``node``, compute as the other one does.

        Raises:
            ConfigError: it has other versions.
        """
        here = _versions()
        if here != self.versions:
            other = [name for name, version in self.versions.items() if here.get(name) != version]
            expected = ", ".join(f"{name} {self.versions[name]}" for name in other)
            found = ", ".join(f"{name} {here.get(name)}" for name in other)
            raise ConfigError(
                f"--ray: expected {expected} on every machine of the cluster, as where the compile was started, "
                f"found {found} on {node}; install the same there"
            )
        self.arithmetic.take()


def environment() -> dict[str, str]:
    """Variables of this process's environment that libraries which compute look at."""
    names = [name for name in os.environ if name.startswith(_PREFIXES) and not name.endswith(_SECRETS)]
    return {name: os.environ[name] for name in names}


@cache
def _versions() -> dict[str, str]:
    packages = (weightpager, torch, transformers, tokenizers, np)
    return {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in packages},
        "weightpager's code": own_code()[:12],
    }


def _processor() -> str:
    kernels = f"kernels for {isa()} and {(*products(), 'none')[0]}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {kernels}"
