from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from paging import page
from weightpager import kernels
from weightpager.doctor.machine import cpu_flags
from weightpager.errors import ConfigError
from weightpager.kernels.torch import calls, dispatch, isa, paged_gated, paged_linear

X86 = platform.machine() in {"x86_64", "AMD64"}


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTPAGER_ISA", raising=False)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, env={**os.environ})


def assert_warned_once(code: str, printed: str, warning: str) -> None:
    ran = python(code)
    assert ran.stdout == printed
    assert ran.stderr.count("\n") == 1
    assert warning in ran.stderr


def test_the_best_kernel_is_chosen_and_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.isa() == kernels.available()[0]
    for name in kernels.available():
        monkeypatch.setenv("WEIGHTPAGER_ISA", name)
        assert kernels.isa() == name


@pytest.mark.parametrize("name", ["neon" if X86 else "avx2", "AVX2", "sse9"])
def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("WEIGHTPAGER_ISA", name)
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    with pytest.raises(ConfigError, match=rf"expected one of .*reference on this machine, got '{name}'"):
        paged_linear(torch.ones(1, 8), weight)


@pytest.mark.skipif(
    not X86 or sys.platform != "linux" or kernels.isa() == "reference", reason="needs native x86 kernels"
)
def test_the_kernels_are_those_that_the_processor_has_instructions_for() -> None:
    flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    wanted = {
        "avx512_bf16": {"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni"},
        "avx512": {"avx512f", "avx512bw", "avx512vl"},
        "avx2": {"avx2", "fma"},
        "generic": set(),
    }
    runs = [name for name, needs in wanted.items() if needs <= flags]
    assert [name for name in kernels.available() if name in wanted] == runs


def test_a_processor_without_vector_instructions_is_warned_of_once() -> None:
    code = (
        "from weightpager.kernels import choice\n"
        "choice.NATIVE = ('generic',)\n"
        "print(choice.isa(), choice.isa(), choice.available())"
    )
    assert_warned_once(code, "generic generic ('generic', 'reference')\n", "the generic kernel serves, and is slow")


@pytest.mark.slow
@pytest.mark.skipif(not X86 or shutil.which("qemu-x86_64") is None, reason="needs x86-64 and its emulator")
@pytest.mark.skipif(kernels.isa() == "reference", reason="the native kernels are not built")
def test_a_processor_without_avx2_runs_the_generic_kernel_with_one_warning() -> None:
    code = "from weightpager import kernels; print(kernels.isa(), kernels.isa(), kernels.available())"
    command = ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-c", code]
    # What the environment says of this machine's processor isn't true of the emulated one.
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    ran = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    assert ran.stdout == "generic generic ('generic', 'reference')\n"
    assert ran.stderr == "this processor has neither AVX2 nor NEON; the generic kernel serves, and is slow\n"


def test_calls_are_counted_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    for name in kernels.available():
        monkeypatch.setenv("WEIGHTPAGER_ISA", name)
        before = calls().get(name, 0)
        paged_linear(torch.ones(1, 8), weight)
        assert calls()[name] == before + 1


def test_a_device_without_kernels_is_served_by_the_reference_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_ISA", kernels.available()[0])
    dispatch._elsewhere.cache_clear()
    with caplog.at_level("WARNING", "weightpager"):
        assert isa("xpu") == isa("xpu") == "reference"
    assert [record.message for record in caplog.records] == [
        "no kernels for xpu (there are none); the reference kernel serves, and is slow"
    ]


@pytest.mark.parametrize("why", [ImportError("No module named 'triton'"), RuntimeError("no C compiler\nfound")])
def test_a_gpu_whose_kernels_do_not_work_is_served_by_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: Exception
) -> None:
    def broken() -> None:
        raise why

    monkeypatch.setattr(dispatch, "_gpu", broken)
    dispatch._elsewhere.cache_clear()
    with caplog.at_level("WARNING", "weightpager"):
        assert isa("cuda") == "reference"
    dispatch._elsewhere.cache_clear()
    assert str(why).splitlines()[0] in caplog.text
    assert "the reference kernel serves, and is slow" in caplog.text


def test_the_log_says_why_a_kernel_could_not_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def check(device: torch.device) -> None:
        try:
            raise ValueError("Cannot bitcast data-type of size 16 to data-type of size 32")
        except ValueError as error:
            raise RuntimeError("at 12:15:\n    even = found\n           ^") from error  # as Triton has it

    monkeypatch.setattr(dispatch, "_gpu", lambda: SimpleNamespace(check=check))
    dispatch._elsewhere.cache_clear()
    with caplog.at_level("WARNING", "weightpager"):
        assert isa("cuda") == "reference"
    dispatch._elsewhere.cache_clear()
    assert "Cannot bitcast" in caplog.text


def test_each_gpu_has_its_own_trial(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def check(device: torch.device) -> None:
        if device.index == 0:
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(dispatch, "_gpu", lambda: SimpleNamespace(check=check))
    dispatch._elsewhere.cache_clear()
    with caplog.at_level("WARNING", "weightpager"):
        assert [isa(name) for name in ("cuda:0", "cuda:1")] == ["reference", "triton"]
    dispatch._elsewhere.cache_clear()
    assert "no kernels for cuda:0 (CUDA out of memory)" in caplog.text


def test_the_reference_can_be_asked_for_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_elsewhere", lambda device: "triton")
    assert isa("cuda") == "triton"
    monkeypatch.setenv("WEIGHTPAGER_ISA", "reference")
    assert isa("cuda") == "reference"


def test_without_the_native_module_the_reference_serves_with_one_warning() -> None:
    code = (
        "import sys; sys.modules['weightpager.kernels._native'] = None\n"
        "from weightpager import kernels\n"
        "print(kernels.isa(), kernels.isa(), kernels.thread_pool(), kernels.available())"
    )
    assert_warned_once(code, "reference reference torch ('reference',)\n", "the reference kernel serves")


@pytest.mark.slow
@pytest.mark.skipif(kernels.isa() == "reference", reason="the native kernels are not built")
@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.openmp.is_available(), reason="torch has no OpenMP")
def test_threads_are_those_of_torchs_own_openmp_runtime() -> None:
    ran = python(
        "import torch\n"
        "def runtimes(): return sorted({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split('/')[-1]})\n"
        "before = runtimes()\n"
        "from weightpager import kernels\n"
        "print(kernels.thread_pool(), before == runtimes())"
    )
    assert ran.stdout == "gomp True\n"


LOADS_ANOTHER = """
#include <dlfcn.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) { usleep(500000); dlopen(OTHER, RTLD_NOW); }
"""


@pytest.mark.slow
@pytest.mark.skipif(kernels.isa() == "reference", reason="the native kernels are not built")
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler")
def test_torchs_runtime_is_found_while_another_thread_loads_libraries(tmp_path: Path) -> None:
    other, slow = tmp_path / "other.so", tmp_path / "slow.so"
    for target, source in ((other, ""), (slow, LOADS_ANOTHER)):
        build = ["cc", "-shared", "-fPIC", f'-DOTHER="{other}"', "-xc", "-", "-o", str(target)]
        subprocess.run(build, input=source, text=True, check=True)
    code = (
        "import ctypes, threading, time\n"
        "from weightpager import kernels\n"
        f"load = lambda: ctypes.CDLL(None).dlopen({str(slow).encode()!r}, 2)\n"
        "loading = threading.Thread(target=load)\n"
        "loading.start()\n"
        "time.sleep(0.2)\n"
        "kernels.thread_pool()\n"
        "loading.join()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(kernels.available() == ("reference",), reason="the native kernels haven't been built")
def test_tensors_without_values_are_refused() -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(torch.ones(1, 8))
    for x, bias in ((fake, None), (torch.ones(1, 8), mode.from_tensor(torch.ones(8)))):
        with pytest.raises(ValueError, match="outside of FakeTensorMode"):
            paged_linear(x, weight, bias)
        with pytest.raises(ValueError, match="outside of FakeTensorMode"):
            paged_gated(x, weight, weight, "silu", (None, bias))
    with mode, pytest.raises(ValueError, match="outside of FakeTensorMode"):
        paged_linear(torch.ones(1, 8), weight)
