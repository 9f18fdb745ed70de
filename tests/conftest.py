"""Fixtures that several folders share: bundles compiled once a run, copied where a test damages them."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, settings

from made_once import made_once
from same_everywhere import blocks_by_lot, same_everywhere

if TYPE_CHECKING:
    from command import Command

# Before anything imports transformers: a test must never look for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models gain nothing from threads, and lose much when something else runs on the machine. This says it to every
# thread, where torch.set_num_threads is about the one that calls it, and to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tiny models learn other values where torch multiplies in tiles, and tests know how many pages their tasks have.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Most tests call tasks as torch modules; those of native code ask for it.
os.environ.setdefault("WEIGHTPAGER_BACKEND", "torch")
# A test must not find what another one has trained.
os.environ["WEIGHTPAGER_CACHE_LIMIT"] = "0"

# Time is measured in benchmarks; a busy machine must not fail a property.
settings.register_profile("weightpager", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("weightpager"), max_examples=25)
settings.load_profile("weightpager")


def pytest_configure(config: pytest.Config) -> None:
    """What takes seconds to import is left to the processes that run tests; the one that hands them out runs none.

    A run that leaves some tests out tries fewer examples of a property than one of all, or of the slow tests alone.
    """
    if "not " in config.getoption("markexpr"):
        settings.load_profile("quick")
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell has put into the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, in this process and in others
    gc.disable()  # until all is imported and collected, which stays; looking through it takes a fifth of the time
    import torch

    # Before anything imports triton: without a GPU its kernels are interpreted. Where pytest is given folders, their
    # conftests have been imported by now, and may not import it, either.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)  # whatever the environment says


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests may take longest come first, so that no worker begins them when the others are done.

    One worker has them all: the tests of real models find the dense model that the demo has trained.
    """
    longest: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0), marker.args[0] if marker and marker.args else 0)
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays; looking through it for garbage again and again took seconds of each minute."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """At exit all of it is garbage."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_groups_of_reads() -> Iterator[None]:
    """All pages of a tiny bundle would be one group of reads, and nothing could come between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightpager.store.read_plan.GROUP_BYTES", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """No test cuts the power, and a compile of a tiny bundle would wait dozens of times until its files are safe.

    What drops them from the page cache has them written nevertheless.
    """
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not sys._getframe(1).f_globals["__name__"].startswith("weightpager.bundle."):
            real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        yield


@pytest.fixture(scope="session")
def users_cache() -> Path:
    """The cache of who runs the tests: what takes minutes to make stays there from run to run."""
    from weightpager.config import cache_dir

    return cache_dir()


@pytest.fixture(scope="session", autouse=True)
def _cache(users_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run's own but for downloads: in the user's there may be places of data that is long gone."""
    own = tmp_path_factory.mktemp("cache")
    for name in ("archives", "models"):
        (users_cache / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(users_cache / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTPAGER_CACHE", str(own))
        yield


@pytest.fixture(scope="session", autouse=True)
def _graphs_traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracing takes seconds, and the processes of a run compile the same tiny models."""
    if find_spec("torch") is None:  # nothing is compiled on a device
        yield
        return
    from weightpager.compiler.graph import export

    real = export._exported

    @cache
    def traced(config: export._Config, kind: str, image: tuple[int, int, int] | None) -> bytes | str:
        def make(folder: Path) -> None:
            found = real(config, kind, image)
            name, content = ("reason", found.encode()) if isinstance(found, str) else ("graph", found)
            (folder / name).write_bytes(content)

        key = blake3(f"{config.text} {kind} {image}".encode()).hexdigest()
        folder = made_once(tmp_path_factory, f"traced-{key[:32]}", make)
        graph = folder / "graph"
        return graph.read_bytes() if graph.exists() else (folder / "reason").read_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_exported", traced)
        yield


@contextmanager
def layers_apart() -> Iterator[None]:
    """Compile so that each layer's pages lie together: a tiny bundle's would all come by one read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightpager.compiler.packing.pack.WORTH_THE_ORDER", math.inf)
        yield


@pytest.fixture(scope="session")
def assistant_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks on a tiny encoder."""

    def make(folder: Path) -> None:
        import tiny
        import weightpager as wp

        with layers_apart(), blocks_by_lot():
            wp.compile(tiny.assistant(folder, compare="dense"), out=folder / "assistant.bundle")

    return made_once(tmp_path_factory, "assistant", make) / "assistant.bundle"


@pytest.fixture(scope="session")
def wordy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assistant with words and positions as rows in pages: 400 and 64 of them."""

    def make(folder: Path) -> None:
        import tiny
        import weightpager as wp

        with pytest.MonkeyPatch.context() as patch, layers_apart(), blocks_by_lot():
            patch.setattr("weightpager.compiler.packing.rows.LEAST_BYTES", 4096)
            wp.compile(tiny.wordy(folder), out=folder / "wordy.bundle")

    return made_once(tmp_path_factory, "wordy", make) / "wordy.bundle"


@pytest.fixture(scope="session")
def writer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two language-modeling tasks on a tiny decoder."""

    def make(folder: Path) -> None:
        import tiny
        import weightpager as wp

        with same_everywhere():
            wp.compile(tiny.writer(folder), out=folder / "writer.bundle")

    return made_once(tmp_path_factory, "writer", make) / "writer.bundle"


@pytest.fixture(scope="session")
def watcher_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks on a tiny model that reads pictures among its words: one of plain prompts, one of conversations."""

    def make(folder: Path) -> None:
        import tiny_llava
        import weightpager as wp

        with same_everywhere():
            wp.compile(tiny_llava.watcher(folder), out=folder / "watcher.bundle")

    return made_once(tmp_path_factory, "watcher", make) / "watcher.bundle"


@pytest.fixture(scope="session")
def camera_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks on a tiny model of images."""

    def make(folder: Path) -> None:
        import tiny
        import weightpager as wp

        with same_everywhere():
            wp.compile(tiny.camera(folder), out=folder / "camera.bundle")

    return made_once(tmp_path_factory, "camera", make) / "camera.bundle"


@pytest.fixture
def weightpager(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in this process: ``weightpager("inspect", path)``."""
    from command import run

    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a file system that can drop what it has cached."""
    from weightpager.machine.storage import mount_of

    directory = tmp_path_factory.mktemp("disk")
    mount = mount_of(directory)
    if mount.kind not in {"btrfs", "ext4", "xfs"} or mount.source.startswith("/dev/loop"):
        pytest.skip(f"temporary files lie on {mount.kind}, which can't drop what it has cached")
    return directory


@pytest.fixture(scope="session")
def memory_file_system() -> Path:
    """A directory whose files live in memory."""
    from weightpager.machine.storage import mount_of

    directory = Path("/dev/shm")
    if not directory.is_dir() or mount_of(directory).kind != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    return directory
