"""What signal handlers raise comes before a change of state or after it, never between, and no lock stays taken."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from interrupted import Interrupted, Steps, stepped
from weightpager.interrupts import Condition, acquire, acquired, in_slices, uninterrupted


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def later(work: Callable[[], object], seconds: float = 0.1) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Whatever happens, handlers are what they were afterwards."""
    before = handlers()
    yield
    assert handlers() == before
    assert not uninterrupted.is_on


@pytest.fixture
def program(unchanged: None) -> Iterator[list[int]]:
    """Handlers that a test sets are gone behind it. A list for what they note."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield []
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def test_ctrl_c_inside_comes_at_the_end_of_the_outermost_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted:
            with uninterrupted:
                press()
                done.append(1)
            done.append(2)
        done.append(3)
    assert done == [1, 2]


def test_a_decorated_function_ends_before_ctrl_c() -> None:
    done = []

    @uninterrupted
    def work() -> None:
        press()
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_all_signals_that_came_are_handled_by_the_handlers_of_whoever_set_them() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted:
            press()
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_all_that_came_are_handled_though_one_raises(program: list[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, _: (program.append(number), signal.default_int_handler(number, None)))
    with pytest.raises(KeyboardInterrupt), uninterrupted:
        for number in NUMBERS:
            os.kill(os.getpid(), number)
    assert sorted(program) == [signal.SIGALRM, signal.SIGTERM]


def test_handlers_find_themselves_in_place_outside_of_the_block(program: list[int]) -> None:
    def handler(number: int, _frame: object) -> None:
        program.append(number)
        assert signal.getsignal(number) is handler
        assert not uninterrupted.is_on

    signal.signal(signal.SIGTERM, handler)
    with uninterrupted:
        os.kill(os.getpid(), signal.SIGTERM)
    assert program == [signal.SIGTERM]


def test_an_event_loop_is_told_of_a_signal_once() -> None:
    came = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: came.append(1))
        with uninterrupted:
            press()
        await asyncio.sleep(0.1)
        loop.remove_signal_handler(signal.SIGINT)

    asyncio.run(work())
    assert came == [1]


def test_an_error_inside_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted:
        press()
        raise ValueError("the block's own")
    assert isinstance(caught.value.__context__, ValueError)


def test_what_takes_long_inside_can_be_interrupted() -> None:
    ended = []
    with pytest.raises(KeyboardInterrupt), uninterrupted:
        try:
            with uninterrupted.lifted():
                press()
                ended.append("never")
        finally:
            press()
            ended.append("tidied up")
    assert ended == ["tidied up"]


def test_other_threads_run_no_handlers_and_change_none() -> None:
    found: list[object] = []

    def work() -> None:
        with uninterrupted, uninterrupted.lifted():
            found.append(signal.getsignal(signal.SIGINT))
            found.append(uninterrupted.is_on)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert found == [signal.getsignal(signal.SIGINT), False]


def test_a_wait_is_interrupted_and_leaves_no_lock_taken() -> None:
    condition = Condition()
    timer = later(press)
    with pytest.raises(KeyboardInterrupt), condition:
        condition.wait_for(lambda: False, 60)
    timer.join()
    found = []
    other = threading.Thread(target=lambda: found.append(condition.acquire(timeout=10)))
    other.start()
    other.join()
    assert found == [True]


def test_a_wait_ends_when_it_is_told_or_its_time_is_over() -> None:
    condition, told = Condition(), []

    def tell() -> None:
        with condition:
            told.append(True)
            condition.notify()

    with condition:
        assert not condition.wait(0.05)
        later(tell)
        assert condition.wait(60)
        assert condition.wait_for(lambda: told, 60)


def test_waiting_for_a_lock_is_interrupted_without_it() -> None:
    lock = threading.Lock()
    with lock:
        timer = later(press)
        with pytest.raises(KeyboardInterrupt), uninterrupted:
            acquire(lock, None)
        timer.join()
        with uninterrupted:
            assert not acquire(lock, 0.05)
    with uninterrupted, acquired(lock):
        assert lock.locked()
    assert not lock.locked()


def test_waiting_in_slices_waits_no_longer_than_it_may() -> None:
    begin = time.monotonic()
    with uninterrupted:
        assert not in_slices(lambda seconds: time.sleep(seconds) is not None, 0.06)
        assert in_slices(lambda _: True, None)
    assert time.monotonic() - begin >= 0.06


@stepped
def test_whatever_step_is_interrupted_a_change_is_made_whole_or_not_at_all() -> None:
    made, lock, steps = [0, 0], threading.Lock(), Steps()

    @uninterrupted
    def change() -> None:
        with acquired(lock):
            made[0] = len(made) - 1
            made[1] = len(made) - 1

    while not steps.is_over:
        steps.at, made[:] = steps.at + 1, [0, 0]
        with suppress(Interrupted):
            steps("change", change)
        assert made[0] == made[1]
        assert not lock.locked()
        with uninterrupted:  # what was interrupted just before its beginning doesn't stay
            assert uninterrupted.is_on
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps.times > 10


@pytest.mark.parametrize("number", NUMBERS)
@stepped
def test_whatever_step_is_interrupted_the_program_has_its_handlers_back(program: list[int], number: int) -> None:
    for each in NUMBERS:
        signal.signal(each, signal.default_int_handler)
    before, steps = handlers(), Steps(number)

    @uninterrupted
    def work() -> None:
        with uninterrupted.lifted():
            pass

    while not steps.is_over:
        steps.at += 1
        with suppress(Interrupted):
            steps("work", work)
        assert handlers() == before, steps.at
        assert not uninterrupted.is_on
        assert not uninterrupted._came
    assert steps.times > 10


@pytest.mark.parametrize("number", NUMBERS)
@stepped
def test_a_handler_that_returns_is_called_once_and_the_block_stays_whole(program: list[int], number: int) -> None:
    signal.signal(number, lambda number, _: program.append(number))
    before, steps = handlers(), Steps(number)

    def work() -> None:
        with uninterrupted:
            assert signal.getsignal(number) not in before

    while not steps.is_over:
        steps.at += 1
        program.clear()
        steps("work", work)
        assert program == [] if steps.is_over else [number]
        assert handlers() == before
