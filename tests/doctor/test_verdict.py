"""From what was found to one line for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from weightpager.doctor.examine import Diagnosis, judge
from weightpager.doctor.kernels import KernelChoice, SelfTest
from weightpager.doctor.machine import Processor
from weightpager.doctor.storage import Storage
from weightpager.machine.memory import Memory

KERNELS = KernelChoice(("avx512", "avx2", "reference"), "avx512", None, "avx512", "gomp", 4, "")
SOUND = Diagnosis(
    processor=Processor("Some CPU", "x86_64", 4, None),
    kernels=KERNELS,
    memory=Memory(1 << 30, 1 << 29, None),
    memory_reads=(),
    storage=Storage(Path("/srv"), "ext4", "/dev/sda1", direct=True),
    self_tests=tuple(SelfTest(name, 36, ()) for name in KERNELS.available),
)


def failing(*names: str) -> Diagnosis:
    return replace(SOUND, self_tests=tuple(SelfTest(n, 36, ("x",) if n in names else ()) for n in KERNELS.available))


def test_a_sound_machine_is_ready() -> None:
    assert judge(SOUND).ready
    assert judge(SOUND).words == "ready: kernel avx512 on 4 threads"


def test_a_machine_without_any_kernel_is_not_ready() -> None:
    found = judge(replace(SOUND, self_tests=(), kernels=replace(KERNELS, available=(), missing="No module")))
    assert not found.ready
    assert found.words == (
        "not ready: no kernel can run here; install a C++ compiler (g++ or clang++), then weightpager again, "
        "or install 'weightpager[torch]'"
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["avx512"], "not ready: avx512 failed the self-test; set WEIGHTPAGER_ISA=avx2, and report it"),
        (["avx512", "avx2"], "set WEIGHTPAGER_ISA=reference"),
        (["avx2"], "set WEIGHTPAGER_ISA=avx512"),
        (["avx512", "avx2", "reference"], "install another version of torch"),
    ],
)
def test_a_wrong_kernel_is_not_ready_and_has_a_way_out(wrong: list[str], words: str) -> None:
    found = judge(failing(*wrong))
    assert not found.ready
    assert words in found.words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(SOUND, kernels=replace(KERNELS, missing="No module")), "install a C++ compiler"),
        (
            replace(SOUND, kernels=replace(KERNELS, chosen="avx2", asked="avx2")),
            "=avx2 holds back avx512: unset it",
        ),
        (replace(SOUND, storage=replace(SOUND.storage, direct=False)), "reads from /srv go through the page cache"),
        (replace(SOUND, storage=replace(SOUND.storage, direct=None, problem="too little space")), "too little space"),
    ],
)
def test_what_is_only_slow_is_ready_and_said(found: Diagnosis, words: str) -> None:
    verdict = judge(found)
    assert verdict.ready
    assert verdict.words.startswith("ready, but ")
    assert words in verdict.words
    assert "\n" not in verdict.words
