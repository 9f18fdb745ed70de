"""A process whose engine is interrupted again and again, at random moments or at every step in turn, and then checked.

``python interrupted.py moments TIMES BUNDLE``, or ``threads``, or ``steps EVERY BUNDLE [WORK...]``:
the code is 0 if nothing went wrong.
"""

from __future__ import annotations

import contextlib
import dis
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

import pytest

import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.errors import BudgetError, BusyError, WeightpagerError
from weightpager.interrupts import uninterrupted

TEXTS = ["cat two sun", "dog one rain", "snow cat cat two"]
_STEPPED = (str(Path(wp.__file__).parent), contextlib.__file__, threading.__file__)
"""Code whose steps are interrupted."""

LONGEST = 20.0
"""Seconds that anything may take here, on a busy machine."""

Work = Callable[[], object]

stepped = pytest.mark.skipif(sys.version_info < (3, 11), reason="older code doesn't tell where its errors go")
"""Marks tests that use `Steps`."""


class Interrupted(Exception):  # noqa: N818 - no failure
    """The work was interrupted."""


class Moments:
    """Interrupts works once each, after a random time: mostly in their midst. Each signal must be handled."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seconds: dict[str, float] = {}
        self.times = 0
        self._come, self._coming = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        self._before: Any = None

    def __enter__(self) -> Moments:
        for end in (self._come, self._coming):
            os.set_blocking(end.fileno(), False)
        signal.set_wakeup_fd(self._coming.fileno(), warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGALRM, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGALRM, self._before)
        signal.set_wakeup_fd(-1)
        self._come.close()
        self._coming.close()

    def __call__(self, name: str, work: Work) -> object:
        self._come.read(64)  # the last one's
        begin, before = time.perf_counter(), self.times
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self.random.uniform(2e-6, 1.1 * self.seconds.get(name, 1e-3)))
                return work()
            finally:
                left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
                took, expected = time.perf_counter() - begin, self.seconds.get(name, 1e-3)
                # Of a work that was interrupted only the beginning is known: the next one has longer to get on.
                self.seconds[name] = took if self.times == before else max(took, 1.1 * expected)
                if not left and self.times == before:
                    time.sleep(0.02)  # another thread may have got it
                come = self._come.read(64)
                assert not come or self.times > before, "Ctrl-C was lost"
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.times += 1
        signal.default_int_handler(number, frame)


class Steps:
    """Interrupts works at every n-th step where CPython handles signals: where a function begins, behind each call of
    native code, and where a loop goes back. The handler is called as CPython calls it.

    Of a work that is interrupted later than before, what had ended by then is not traced again: how many steps it took
    is known.

    Args:
        number: the signal whose handler is called.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self._number = number
        self.times = 0
        self.at = 0
        self._left = 0
        self._came = True
        self._now = _Passed()
        self._passed: dict[str, _Passed] = {}

    def __call__(self, name: str, work: Work) -> object:
        """Works of one name take the same steps."""
        self._left, self._came = self.at, False
        passed = self._passed.get(name)
        if passed is None or passed.at > self.at:
            passed = self._passed[name] = _Passed()
        passed.begin()
        self._now = passed
        try:
            sys.settrace(self._begins)
            try:
                return work()
            finally:
                sys.settrace(None)
        except KeyboardInterrupt as error:
            self.times += 1
            raise Interrupted from error

    @property
    def is_over(self) -> bool:
        """Whether the latest work had fewer steps."""
        return not self._came

    def forget(self) -> bool:
        """Count each step again; whether any were known."""
        knew = any(passed.at for passed in self._passed.values())
        self._passed.clear()
        return knew

    def _begins(self, frame: FrameType, _event: str, _argument: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_STEPPED):
            return None
        passed = self._now
        call = passed.call(frame)
        if call is None:
            self._left -= passed.steps[passed.calls]
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._step(frame, call)
        checked, before = _checked(frame.f_code), -1

        def steps(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal before
            if event == "opcode":
                now = frame.f_lasti
                checks, before = checked[before, now], now
                if checks:
                    self._step(frame, call)
            return frame.f_trace  # itself, by no name of its own: that would be a cycle for the collector

        return steps

    def _step(self, frame: FrameType, call: int) -> None:
        self._now.steps[call] += 1
        self._left -= 1
        if self._left <= 0 and not self._came:
            self._came = True
            self._now.end(self.at, frame)
            handler = signal.getsignal(self._number)
            assert callable(handler)
            handler(self._number, frame)


class _Passed:
    """The steps of a work up to the one that was interrupted, by the calls of functions in their order.

    Attributes:
        at: the step that was interrupted.
        steps: of each call.
        calls: number of the call that began last.
    """

    def __init__(self) -> None:
        self.at = 0
        self.steps: list[int] = []
        self.calls = -1
        self._known = 0
        self._open: set[int] = set()
        self._frames: dict[int, int] = {}

    def begin(self) -> None:
        self.calls = -1
        self._frames.clear()
        del self.steps[self._known :]

    def call(self, frame: FrameType) -> int | None:
        """The number of a call that begins; None if its steps are known."""
        self.calls += 1
        if self.calls < self._known and self.calls not in self._open:
            return None
        if self.calls < len(self.steps):
            self.steps[self.calls] = 0
        else:
            self.steps.append(0)
        self._frames[id(frame)] = self.calls
        return self.calls

    def end(self, at: int, frame: FrameType | None) -> None:
        """The work is interrupted in this frame: its calls, and those that they are in, haven't ended."""
        self.at, self._known = at, len(self.steps)
        self._open.clear()
        while frame is not None:  # the address of a frame that has ended may be another's: its steps are counted again
            if id(frame) in self._frames:
                self._open.add(self._frames[id(frame)])
            frame = frame.f_back


class _Checked(dict[tuple[int, int], bool]):
    """Of two instructions that run one after the other: whether signals are handled before the second, and what is
    raised there goes where it would go. Found once for each pair, as there are millions of steps.
    """

    def __init__(self, code: CodeType) -> None:
        self._code = code  # so that no other one gets its address
        self._table = dis._parse_exception_table(code)  # type: ignore[attr-defined]
        self._names = {each.offset: each.opname for each in dis.get_instructions(code)}

    def __missing__(self, pair: tuple[int, int]) -> bool:
        before, now = pair
        self[pair] = self._names.get(now, "").startswith("JUMP_BACKWARD") or (
            self._names.get(before, "").startswith("CALL")
            and before < now
            and self._handler(before) == self._handler(now)
        )
        return self[pair]

    def _handler(self, at: int) -> object:
        return next(((entry.target, entry.depth) for entry in self._table if entry.start <= at < entry.end), None)


_known: dict[int, _Checked] = {}


def _checked(code: CodeType) -> _Checked:
    """By the code's address: its hash is one of all that it has."""
    found = _known.get(id(code))
    if found is None:
        found = _known[id(code)] = _Checked(code)
    return found


class Trial:
    """An engine under a budget for one task, what its tasks answer, and a few works that change its state."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.bundle = Bundle.open(path)
        self.tasks = list(self.bundle.tasks)
        most = max(len(self.bundle.pages_of(task)) for task in self.tasks)
        least = footprint(self.bundle).total + most * self.bundle.page_bytes
        self.budgets = [least, least + 4 * self.bundle.page_bytes]
        with wp.Engine.from_pretrained(path) as engine:
            self.expected = {task: engine.predict(task, TEXTS) for task in self.tasks}
        self.before = self._descriptors(), threading.active_count()
        self.engine = self.open()
        self.pins = 0

    def open(self, **more: Any) -> wp.Engine:
        return wp.Engine.from_pretrained(self.path, budget=self.budgets[-1], **more)

    def _open_and_close(self, task: str) -> None:
        history = self.folder / "history"  # one engine's at a time
        with self.open(history=history, prefetch=True, real_time=[task]) as engine:
            engine.predict(task, TEXTS[:1])

    def works(self) -> dict[str, Callable[[str], object]]:
        """What users call, by name; each takes a task's name."""
        engine = self.engine
        return {
            "predict": lambda task: self._right(task, engine.predict(task, TEXTS)),
            "activate": engine.activate,
            "activate at once": lambda task: engine.activate(task, wait=False),
            "task": lambda task: self._run(task, wait=True),
            "task at once": lambda task: self._run(task, wait=False),
            "pin": self._pin,
            "set_budget": lambda task: engine.set_budget(self.budgets[self.tasks.index(task) % 2]),
            "prefetch": engine.prefetch,
            "evict": lambda _: engine.evict(),
            "reload": lambda _: engine.reload(),
            "deactivate": lambda _: engine.deactivate(),
            "report": lambda _: engine.report(),
            "verify": lambda _: engine.verify(),
            "open": self._open_and_close,
        }

    def _run(self, task: str, *, wait: bool) -> None:
        with self.engine.task(task, wait=wait):
            self.engine.predict(task, TEXTS[:1])

    def _pin(self, task: str) -> None:
        self.engine.pin(task)
        self.engine.unpin(task)

    def _right(self, task: str, found: object) -> None:
        assert _same(found, self.expected[task]), f"{task}: {found}"

    def check(self, kept: list[BaseException]) -> None:
        """See that nothing is held, every task answers as in an engine that was never interrupted, and nobody waits.

        Whatever the errors ``kept`` keep alive is no excuse, save for engines that were being opened.
        """
        engine = self.engine
        for name in self.tasks:  # what an interrupted pin may have left, the user can undo
            while engine._open.tasks[name].pins:
                engine.unpin(name)
        engine.deactivate()
        held = {name: task.gate.holders for name, task in engine._open.tasks.items()}
        inside = {name: len(task.gate._readers) for name, task in engine._open.tasks.items()}
        assert not any(held.values()), f"held: {held}"
        assert not any(inside.values()), f"readers: {inside}"
        assert not len(engine.blocks.locked()), "pages are locked"
        assert not engine._memory.tables.in_use, "tables are held"
        assert not engine._open._paging.committing
        assert uninterrupted._depth == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for task in self.tasks:
            self._right(task, engine.predict(task, TEXTS))
        engine.deactivate()
        found: list[object] = []
        other = threading.Thread(target=lambda: found.append(engine.predict(self.tasks[0], TEXTS)), daemon=True)
        other.start()
        other.join(LONGEST)
        assert found, "another thread waits for ever"
        with engine._residency._lock:
            engine.blocks.check_integrity()
        assert engine.verify() == []

    def end(self, kept: list[BaseException]) -> None:
        """Close it, which takes no time and leaves nothing."""
        begin = time.monotonic()
        self.engine.close()
        assert time.monotonic() - begin < LONGEST, "closing takes long"
        kept.clear()
        gc.collect()
        end = time.monotonic() + LONGEST
        while (self._descriptors(), threading.active_count()) > self.before and time.monotonic() < end:
            time.sleep(0.01)
        assert (self._descriptors(), threading.active_count()) <= self.before, (
            f"{self.before} became {self._descriptors(), threading.active_count()}: {threading.enumerate()}"
        )

    @staticmethod
    def _descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))


def _same(found: Any, wanted: Any) -> bool:
    return repr(found) == repr(wanted)


@contextmanager
def others_at_work(trial: Trial) -> Iterator[None]:
    """Two threads predict meanwhile; what they get must be right, unless there is no room or the bundle changes."""
    stop, wrong = threading.Event(), []

    def work(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            task = chance.choice(trial.tasks)
            try:
                trial._right(task, trial.engine.predict(task, TEXTS))
            except WeightpagerError:
                time.sleep(0.001)
            except BaseException as error:  # noqa: BLE001 - the test's
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONGEST)
    assert not wrong, wrong
    assert not any(thread.is_alive() for thread in threads), "another thread waits for ever"


def interrupt(trial: Trial, interrupter: Moments | Steps, name: str, task: str, kept: list[BaseException]) -> None:
    """Have one work interrupted. Refusals are right where a pin or another task has the room."""
    work = trial.works()[name]
    try:
        interrupter(name if isinstance(interrupter, Moments) else f"{name} {task}", lambda: work(task))
    except Interrupted as error:
        if name == "open":  # Ctrl-C just before the block's end leaves the closing to the collector
            error.__cause__ = None
            gc.collect()
        else:
            kept.append(error)
            del kept[:-50]
    except (BudgetError, BusyError):
        pass


def at_moments(trial: Trial, times: int, seed: int, kept: list[BaseException]) -> None:
    with Moments(seed) as moments:
        while moments.times < times:
            names = [*trial.works(), "predict", "predict", "task"]
            for _ in range(50):
                interrupt(trial, moments, moments.random.choice(names), moments.random.choice(trial.tasks), kept)
            trial.check(kept)


def at_steps(trial: Trial, every: int, names: Iterable[str], kept: list[BaseException]) -> None:
    steps = Steps()
    for name in names:
        steps.at, number = 1, 0
        while True:
            try:
                interrupt(trial, steps, name, trial.tasks[number % len(trial.tasks)], kept)
                trial.check(kept)
            except Exception as error:
                error.add_note(f"{name!r} was interrupted at step {steps.at}")
                raise
            if not steps.is_over:
                number += 1
                steps.at += every
            elif not steps.forget():  # else it may have taken another way than before, of more steps than were counted
                break


def at_moments_beside_others(trial: Trial, times: int, kept: list[BaseException]) -> None:
    with others_at_work(trial), Moments(2) as moments:
        while moments.times < times:
            name = moments.random.choice(["predict", "activate", "task", "set_budget", "reload", "evict", "report"])
            interrupt(trial, moments, name, moments.random.choice(trial.tasks), kept)
    trial.check(kept)


def main(how: str, number: int, path: Path, *names: str) -> None:
    faulthandler.dump_traceback_later(int(os.environ.get("HANGS_AFTER", "240")), exit=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with TemporaryDirectory() as folder:
        trial, kept = Trial(path, Path(folder)), []
        gc.collect()
        gc.freeze()  # what was imported stays: after each work that opens an engine, the rest is looked through
        if how == "steps":
            at_steps(trial, number, names or trial.works(), kept)
        elif how == "moments":
            at_moments(trial, number, 1, kept)
        else:
            at_moments_beside_others(trial, number, kept)
        gc.unfreeze()
        trial.end(kept)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
