"""The processor: its name, the cores that this process may use, and what it has of what the kernels ask for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from weightpager.machine.cores import usable_cores

_ASKED_FOR = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_bf16"),
    "aarch64": ("asimd", "bf16"),
}
"""By machine: the features that decide which kernels run, as Linux names them."""

_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Processor:
    """What is known of a processor.

    Attributes:
        model: its name; None where unknown.
        machine: its architecture, such as ``"x86_64"``.
        usable_cores: number of cores that this process may use.
        features: those of the features that kernels ask for which it has; None where unknown.
    """

    model: str | None
    machine: str
    usable_cores: int
    features: dict[str, bool] | None


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """This machine's processor; a system without ``/proc/cpuinfo`` leaves name and features unknown."""
    return parse_processor(read_cpuinfo(cpuinfo), platform.machine(), usable_cores())


def read_cpuinfo(file: Path = Path("/proc/cpuinfo")) -> str:
    """The text that describes the processor; empty on a system without such a file."""
    try:
        return file.read_text()
    except OSError:
        return ""


def parse_processor(cpuinfo: str, machine: str, usable_cores: int) -> Processor:
    """The processor that the text of ``/proc/cpuinfo`` describes."""
    machine = _SAME.get(machine.lower(), machine)
    asked, flags = _ASKED_FOR.get(machine), cpu_flags(cpuinfo)
    features = {name: name in flags for name in asked} if asked and flags else None
    return Processor(cpu_model(cpuinfo), machine, usable_cores, features)


def cpu_model(cpuinfo: str) -> str | None:
    """Name of the first CPU that ``/proc/cpuinfo`` lists: on Arm the numbers of its implementer and part."""
    fields = _first_cpu(cpuinfo)
    numbers = " ".join(fields[key] for key in ("CPU implementer", "CPU part") if key in fields)
    return fields.get("model name") or numbers or None


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Features of the first CPU that ``/proc/cpuinfo`` lists."""
    fields = _first_cpu(cpuinfo)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _first_cpu(cpuinfo: str) -> dict[str, str]:
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
