"""Rows that come on demand while storage hangs, fails, or other threads switch, resize and close."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits
from engines import InThread, hanging
from faults import FaultyStore
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import EngineConfig
from weightpager.errors import BudgetError, EngineClosedError, PageCorruptError, StoreError, StoreTimeoutError
from weightpager.runtime.budget import smallest_budget
from weightpager.store import LocalStore

FEW_ROWS = 5 * 75


@pytest.fixture(scope="module")
def bundle(wordy_bundle: Path) -> Bundle:
    return Bundle.open(wordy_bundle)


def texts(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(16, 400, (2, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[str, list[torch.Tensor]]:
    with wp.Engine(bundle, EngineConfig()) as engine:
        return {task: [logits(engine.activate(task), texts(seed)) for seed in range(30)] for task in TASKS}


def row_pages(bundle: Bundle) -> range:
    return range(bundle.manifest.pages, bundle.manifest.pages + bundle.manifest.row_pages)


def test_a_hung_read_ends_the_forward_and_nothing_else(bundle: Bundle, expected: dict[str, list[torch.Tensor]]) -> None:
    with hanging(bundle, rows=FEW_ROWS, read_timeout=0.2) as (engine, store), engine.task("animal") as module:
        store.hang(row_pages(bundle))
        with pytest.raises(StoreTimeoutError, match=r"0\.2 s"):
            logits(module, texts(0))
        store.resume()
        assert torch.equal(logits(module, texts(0)), expected["animal"][0])


def test_switches_and_budgets_dont_wait_for_rows(bundle: Bundle, expected: dict[str, list[torch.Tensor]]) -> None:
    with hanging(bundle, rows=FEW_ROWS, io_threads=16) as (engine, store), engine.task("animal") as module:
        logits(module, texts(1))
        store.hang(row_pages(bundle))
        forward = InThread(lambda: logits(module, texts(0)))
        store.wait_for_a_read(row_pages(bundle))
        with engine.task("weather") as other:
            assert other is engine.module("weather")
        engine.set_budget(smallest_budget(bundle, rows=FEW_ROWS) + len(bundle.pages) * bundle.page_bytes)
        assert engine.verify() == []
        store.resume()
        found = forward.result()
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected["animal"][0])


def test_closing_ends_a_forward_that_waits_for_rows(bundle: Bundle) -> None:
    with hanging(bundle, rows=FEW_ROWS, io_threads=1) as (engine, store):
        module = engine.activate("animal")
        store.hang(row_pages(bundle))
        forward = InThread(lambda: logits(module, texts(0)))
        store.wait_for_a_read(row_pages(bundle))
        closing = InThread(engine.close)
        time.sleep(0.05)
        store.resume()
        closing.result()
        with pytest.raises(EngineClosedError):
            for seed in range(1, 5):
                forward.result()
                logits(module, texts(seed))


@pytest.mark.parametrize(("fault", "error"), [("failing", StoreError), ("damaging", PageCorruptError)])
def test_a_failed_read_raises_and_the_next_one_is_right(
    bundle: Bundle, expected: dict[str, list[torch.Tensor]], fault: str, error: type[Exception]
) -> None:
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(rows=FEW_ROWS), lambda _: store) as engine, engine.task("animal") as module:
        setattr(store, fault, 1)
        with pytest.raises(error):
            logits(module, texts(2))
        assert torch.equal(logits(module, texts(2)), expected["animal"][2])


def test_a_flipped_bit_is_refused_when_its_row_is_wanted(
    wordy_bundle: Path, tmp_path: Path, expected: dict[str, list[torch.Tensor]]
) -> None:
    copied = Path(shutil.copytree(wordy_bundle, tmp_path / "copied.bundle"))
    with wp.Engine(Bundle.open(copied), EngineConfig(rows=FEW_ROWS)) as engine, engine.task("animal") as module:
        path = copied / "rows-0000.safetensors"
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(len(whole) - 4096)
            file.write(bytes(4096))
            os.fsync(file.fileno())
        with pytest.raises(PageCorruptError, match="weightpager verify"):
            for seed in range(30):
                logits(module, texts(seed))
        with path.open("r+b") as file:
            file.write(whole)
            os.fsync(file.fileno())
        for seed in range(30):
            assert torch.equal(logits(module, texts(seed)), expected["animal"][seed])


def test_threads_switch_resize_and_look_up_at_once(bundle: Bundle, expected: dict[str, list[torch.Tensor]]) -> None:
    least = footprint(bundle).total + len(bundle.pages) * bundle.page_bytes
    wrong: list[object] = []
    ended = threading.Event()

    def work(seed: int, engine: wp.Engine) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(40):
                task, text = str(random.choice(TASKS)), int(random.integers(30))
                with engine.task(task, timeout=30) as module:
                    if not torch.equal(logits(module, texts(text)), expected[task][text]):
                        wrong.append((task, text))
        except Exception as error:  # noqa: BLE001 - the test's thread shows it
            wrong.append(error)

    def resize(engine: wp.Engine) -> None:
        random = np.random.default_rng(99)
        while not ended.is_set():
            with suppress(BudgetError):  # more rows leave too little for the tasks in use
                engine.set_budget(int(random.integers(least, least + 15_000)))

    with wp.Engine(bundle, EngineConfig(budget=least)) as engine:
        threads = [threading.Thread(target=work, args=(seed, engine)) for seed in range(3)]
        resizer = threading.Thread(target=resize, args=(engine,))
        for thread in (*threads, resizer):
            thread.start()
        for thread in threads:
            thread.join(120)
        ended.set()
        resizer.join(120)
        assert not any(thread.is_alive() for thread in (*threads, resizer))
        assert wrong == []
        assert engine.report().rows.faults > 0
