"""What to make of a diagnosis: ready or not, and what to fix."""

from __future__ import annotations

from dataclasses import dataclass

from weightpager.doctor.examine import Diagnosis
from weightpager.kernels.choice import REFERENCE

INSTALL_NATIVE = "install a C++ compiler (g++ or clang++), then weightpager again"


@dataclass(frozen=True)
class Verdict:
    """Whether the machine is ready, and what to fix.

    Attributes:
        ready: whether a kernel can run here, and every one that can computes rightly.
        words: one line for people: ready, or what to fix.
    """

    ready: bool
    words: str


def judge(found: Diagnosis) -> Verdict:
    """Judge what was found."""
    if not found.self_tests:
        way_out = f"{INSTALL_NATIVE}, or install 'weightpager[torch]'"
        return Verdict(False, f"not ready: no kernel can run here; {way_out}")
    wrong = [test.kernel for test in found.self_tests if test.failures]
    if wrong:
        return Verdict(False, f"not ready: {', '.join(wrong)} failed the self-test; {_way_out(found)}")
    slow = [*_slow_kernels(found), *_slow_storage(found)]
    if slow:
        return Verdict(True, f"ready, but {'; '.join(slow)}")
    kernel, threads = found.kernels.chosen, found.kernels.threads
    return Verdict(True, f"ready: kernel {kernel} on {threads} thread{'s' if threads > 1 else ''}")


def _way_out(found: Diagnosis) -> str:
    right = [test.kernel for test in found.self_tests if not test.failures]
    wrong = [test.kernel for test in found.self_tests if test.failures]
    if REFERENCE in wrong:
        return "the reference is torch itself: install another version of torch"
    if not right:
        return "report it, and install torch to run without the native kernels"
    return f"set WEIGHTPAGER_ISA={right[0]}, and report it"


def _slow_kernels(found: Diagnosis) -> list[str]:
    if found.kernels.missing:
        return [f"slow without the native kernels: {INSTALL_NATIVE}"]
    best = found.kernels.available[0]
    slow = []
    if found.kernels.chosen != best:
        slow.append(f"WEIGHTPAGER_ISA={found.kernels.chosen} holds back {best}: unset it for speed")
    return slow


def _slow_storage(found: Diagnosis) -> list[str]:
    if found.storage.direct is False:
        return [f"reads from {found.storage.directory} go through the page cache: keep bundles where O_DIRECT works"]
    if found.storage.problem:
        return [f"storage was not measured ({found.storage.problem}): name another directory with --path"]
    return []
