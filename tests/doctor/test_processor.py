"""What ``/proc/cpuinfo`` says, of several machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.doctor.machine import parse_processor, read_processor

SERVER = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
cpu cores\t: 2
flags\t\t: fpu sse2 fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16 amx_bf16 amx_tile
bugs\t\t: spectre_v1 avx2

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
BOX = """processor\t: 0
model name\t: Intel(R) Celeron(R) J4125 CPU @ 2.00GHz
flags\t\t: fpu sse2 ssse3 sse4_1 sse4_2
"""
RASPBERRY_PI_4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Revision\t: c03111
Model\t\t: Raspberry Pi 4 Model B Rev 1.1
"""
GRAVITON_3 = """processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def had(features: dict[str, bool] | None) -> list[str]:
    assert features is not None
    return [name for name, present in features.items() if present]


def test_every_feature_of_a_server_is_found() -> None:
    found = parse_processor(SERVER, "x86_64", 2)
    assert found.model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert found.usable_cores == 2
    assert had(found.features) == ["avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_bf16"]


def test_what_a_small_box_lacks_is_said() -> None:
    found = parse_processor(BOX, "AMD64", 4)
    assert found.machine == "x86_64"
    assert had(found.features) == []
    assert found.features is not None
    assert {"avx2", "fma", "avx512f"} <= found.features.keys()


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (RASPBERRY_PI_4, "0x41 0xd08", {"asimd": True, "bf16": False}),
        (GRAVITON_3, "0x41 0xd40", {"asimd": True, "bf16": True}),
    ],
)
@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_arm_is_read_too(text: str, model: str, features: dict[str, bool], machine: str) -> None:
    found = parse_processor(text, machine, 4)
    assert (found.model, found.machine, found.features) == (model, "aarch64", features)


@pytest.mark.parametrize(("text", "machine"), [("", "x86_64"), ("", "aarch64"), ("isa\t\t: rv64imafdc\n", "riscv64")])
def test_what_is_not_known_is_not_denied(text: str, machine: str) -> None:
    found = parse_processor(text, machine, 1)
    assert (found.model, found.features) == (None, None)


def test_a_system_without_cpuinfo_is_unknown(tmp_path: Path) -> None:
    found = read_processor(tmp_path / "cpuinfo")
    assert (found.model, found.features) == (None, None)
    assert found.usable_cores >= 1
