"""What is done with a mutant: everything that opens, reads, checks or runs a bundle."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

import weightpager as wp
from weightpager.backends.torch.architecture import image_reader
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.report.advice import advise
from weightpager.bundle.report.compile_report import has_report, read_report
from weightpager.bundle.report.page_statistics import overlap
from weightpager.config import EngineConfig
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.kernels.choice import NATIVE
from weightpager.machine.memory import size_field
from weightpager.runtime.budget import smallest_budget
from weightpager.store import LocalStore, StorageModel, VerifyingStore, all_switches
from weightpager.store.block_reader import read_low_rank

_TEXT = {"input_ids": torch.tensor([[2, 5, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
_PIXELS = {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}
_PICTURE = b"P6 16 16 255\n" + bytes(range(256)) * 3

_VERIFIED = ("model", "graph", "resident", "report", "low-rank parts", "private", "pages", "native", "reader")
"""Steps of which `verify` must say before that they are refused."""


class Stopped(BaseException):
    """A limit was passed; nothing that is on trial may catch it."""


@dataclass(frozen=True)
class Plan:
    """What to do besides opening and reading, which takes longest.

    Attributes:
        verify: have every byte checked at once.
        native: open an engine with native code, and ask a task.
        engine: run a task with torch.
        task: number of that task.
    """

    verify: bool
    native: bool
    engine: bool
    task: int


@dataclass
class Trial:
    """What came of it.

    Attributes:
        refusals: step → our error.
        failures: step → what must not happen, in words.
        outputs: task → the bytes of its answer.
        problems: lines that `verify` found.
    """

    refusals: dict[str, WeightpagerError] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    problems: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note how a step ends; the next one follows whatever came of it."""
        try:
            yield
        except WeightpagerError as error:
            self.refusals.setdefault(name, error)
            if _out_of_memory(error):
                self.failures[name] = f"refused for lack of memory: {error}"[:400]
        except (Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is no Exception
            self.failures[name] = _words(error)

    def run(self, name: str, step: Callable[[], object]) -> None:
        with self.step(name):
            step()


def attempt(path: Path, plan: Plan) -> Trial:
    """Use a bundle in every way that is planned."""
    trial = Trial()
    opened: list[Bundle] = []
    trial.run("open", lambda: opened.append(Bundle.open(path)))
    if plan.verify:
        with trial.step("verify"):
            trial.problems = len(verify(path).problems)
    if opened:
        bundle = opened[0]
        _read(trial, bundle)
        _load(trial, bundle)
        task = list(bundle.tasks)[plan.task % len(bundle.tasks)]
        if plan.native and NATIVE and bundle.has_graphs:
            _ask(trial, bundle, task)
        if plan.engine:
            _run(trial, bundle, task)
    if plan.verify and not trial.problems and "verify" not in trial.failures:
        for step in ("open", *_VERIFIED):
            if not isinstance(trial.refusals.get(step), (NoneType, ConfigError)):  # one says that torch is needed
                trial.failures[step] = f"verify found nothing, but: {trial.refusals[step]}"[:400]
    return trial


def outputs(path: Path) -> dict[str, bytes]:
    """Task → the bytes of its answer, of a sound bundle."""
    with wp.Engine.from_pretrained(path, backend="torch") as engine:
        return {task: _answer(engine.activate(task), engine.bundle.task(task)) for task in engine.bundle.tasks}


def _read(trial: Trial, bundle: Bundle) -> None:
    """All that is read besides pages."""
    trial.run("footprint", lambda: (footprint(bundle), smallest_budget(bundle), bundle.dense_bytes, overlap(bundle)))
    trial.run("switches", lambda: all_switches(bundle, StorageModel()))
    trial.run("model", lambda: model_dir(bundle))
    for kind in bundle.graph_kinds:
        trial.run("graph", lambda: bundle.graph(kind))  # noqa: B023 - called at once
    trial.run("resident", lambda: read_parameters(bundle, RESIDENT))
    if has_report(bundle):
        trial.run("report", lambda: advise(bundle, read_report(bundle)))
    for task in bundle.tasks:
        for table in bundle.tables(task).values():
            trial.run("tables", table.rows)
        trial.run("low-rank parts", lambda: read_low_rank(bundle, task))  # noqa: B023 - called at once
        trial.run("private", lambda: read_parameters(bundle, private_file(task)))  # noqa: B023


def _load(trial: Trial, bundle: Bundle) -> None:
    """Every page, as a pager reads it."""
    with trial.step("pages"):
        store = VerifyingStore(LocalStore(bundle), bundle.pages)
        try:
            page = memoryview(mmap.mmap(-1, bundle.page_bytes))  # aligned, as direct reads want it
            for number in range(len(bundle.pages)):
                trial.run("pages", lambda: store.read(number, [page]))  # noqa: B023
        finally:
            store.close()


def _ask(trial: Trial, bundle: Bundle, task: str) -> None:
    """One task of an engine without torch, asked as its users ask it."""
    entry = bundle.task(task)
    asked: list[Any] = [_PICTURE if entry.takes_images else "red cat"]
    with trial.step("native"), wp.Engine(bundle, EngineConfig(backend="native")) as engine:
        trial.run("reader", engine.reader)
        if bundle.pictures is not None:
            trial.run("native features", lambda: _see(engine, task))
        with trial.step("native answer"):
            (answer,) = engine.predict(task, asked, max_new_tokens=1)
            assert answer.score is None or answer.label in entry.classes, f"a label that is no class: {answer.label!r}"


def _run(trial: Trial, bundle: Bundle, task: str) -> None:
    """One task: its module, its answer, and what it says to a text or an image."""
    entry = bundle.task(task)
    with trial.step("engine"), wp.Engine(bundle, EngineConfig(backend="torch")) as engine:
        module = engine.activate(task)
        with trial.step("forward"):
            trial.outputs[task] = _answer(module, entry)
        if entry.takes_images:
            trial.run("image", lambda: _look(module, bundle))
            return
        if bundle.pictures is not None:
            trial.run("features", lambda: _see(engine, task))
        with trial.step("tokenizer"):
            engine.predict(task, ["red cat"], max_new_tokens=1)
        if entry.kind == "language-modeling":
            trial.run("generate", lambda: module.generate(**_TEXT, max_new_tokens=2))


def _look(module: nn.Module, bundle: Bundle) -> None:
    pixels = image_reader(bundle).read(_PICTURE)
    with torch.inference_mode():
        module(pixel_values=torch.from_numpy(pixels[None]))


def _see(engine: wp.Engine, task: str) -> None:
    """A picture's features, as whoever keeps them asks for them."""
    reader: Any = engine.reader()
    engine.activate(task)
    engine.model(task).features(reader.pictures.read(_PICTURE).pixels[None])


def _answer(module: nn.Module, task: TaskEntry) -> bytes:
    with torch.inference_mode():
        logits: Any = module(**(_PIXELS if task.takes_images else _TEXT)).logits
    return bytes(logits.float().numpy().tobytes())


def _words(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:200]} [{where}]"


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


CPU_SECONDS = 2.0
WALL_SECONDS = 8.0
"""For what waits, such as for the other end of a FIFO."""

ADDRESS_SPACE = 1 << 30
"""Bytes that a child may map beside what it began with."""

PEAK_BYTES = 192 << 20
"""By which a trial may raise the resident set, however small the bundle."""

_NOBODY = 65534


def limit_address_space() -> None:
    """Have larger allocations fail in this process."""
    most = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def timed() -> Iterator[None]:
    """Raise `Stopped` in what takes longer."""
    start = _idle()

    def stop_work(*_: object) -> None:
        raise Stopped(f"more than {CPU_SECONDS:g} s of work")

    def stop_waiting(*_: object) -> None:
        if (rest := WALL_SECONDS - (_idle() - start)) <= 0:
            raise Stopped(f"more than {WALL_SECONDS:g} s of waiting")
        signal.setitimer(signal.ITIMER_REAL, max(0.1, rest))

    signal.signal(signal.SIGPROF, stop_work)
    signal.signal(signal.SIGALRM, stop_waiting)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _idle() -> float:
    """Seconds in which this thread neither ran nor waited for a processor, which other programs may have."""
    running, queued, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    return time.monotonic() - (int(running) + int(queued)) / 1e9


_REACH = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "pickle.find_class", "webbrowser.open", "ctypes.dlopen",
)  # fmt: skip
"""Audit events of what no bundle may bring about."""

_watching: list[set[str]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in _REACH:
        _watching[-1].add(f"{event} {str(arguments)[:100]}")


@cache
def _listen() -> None:
    """Once: a hook stays as long as its process."""
    sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[set[str]]:
    """What reaches out of this process meanwhile: to other machines, programs, or pickles."""
    _listen()
    found: set[str] = set()
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)


class Peak:
    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def rise(self) -> int:
        """Bytes, from the start to the peak."""
        return _status("VmHWM") - self._before


@contextmanager
def unprivileged(wanted: bool) -> Iterator[None]:
    """Without the superuser's right to read everything."""
    if not wanted or os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _status(name: str) -> int:
    found = size_field(Path("/proc/self/status").read_text(encoding="ascii"), name)
    assert found is not None, f"Linux states {name}"
    return found
