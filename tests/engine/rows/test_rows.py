"""Tables whose rows come on demand: the same answers as from whole tables, whatever is in memory."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

import weightpager as wp
from devices import LateCopier
from encoder_tasks import TASKS, logits
from weightpager.backends.torch.parameters import read_rows
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, whole_rows
from weightpager.config import EngineConfig
from weightpager.errors import BudgetError
from weightpager.nn.embedding import PagedEmbedding
from weightpager.runtime.budget import smallest_budget
from weightpager.runtime.memory.staged_arena import Staging

WORDS = "base_model.embeddings.word_embeddings.weight"
POSITIONS = "base_model.embeddings.position_embeddings.weight"


def texts(seed: int = 0, count: int = 4, length: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 400, (count, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def bundle(wordy_bundle: Path) -> Bundle:
    return Bundle.open(wordy_bundle)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[tuple[str, int], torch.Tensor]:
    with wp.Engine(bundle, EngineConfig()) as engine:
        found = {}
        for task in TASKS:
            with engine.task(task) as module:
                found |= {(task, seed): logits(module, texts(seed)) for seed in range(8)}
        return found


def test_the_bundle_is_sound_and_its_tables_are_rows(bundle: Bundle) -> None:
    assert verify(bundle.path).problems == ()
    assert {entry.name: (entry.rows, entry.columns) for entry in bundle.manifest.row_tables} == {
        WORDS: (400, 64),
        POSITIONS: (64, 64),
    }
    assert not {WORDS, POSITIONS} & set(bundle.manifest.resident_reasons)
    words = bundle.row_tables[WORDS]
    assert set(words.entry.uses) == set(TASKS)
    assert words.entry.curve()[8] > 0.99  # 16 words occur, and 50 rows serve them
    assert set(words.places[:16].tolist()) == set(range(16))


def test_rows_give_what_whole_tables_of_the_same_values_give(
    bundle: Bundle, expected: dict[tuple[str, int], torch.Tensor]
) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        for task in TASKS:
            with engine.task(task) as module:
                assert torch.equal(logits(module, texts()), expected[task, 0])
                for name, table in read_rows(bundle).items():
                    path = name.replace("base_model", "bert").removesuffix(".weight")
                    assert isinstance(module.get_submodule(path), PagedEmbedding)
                    assert torch.equal(module.get_submodule(path).weight, table)
                    module.set_submodule(path, torch.nn.Embedding.from_pretrained(table))
                assert torch.equal(logits(module, texts()), expected[task, 0])


def test_without_a_budget_nothing_is_read_after_opening(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        with engine.task("animal") as module:
            logits(module, texts())
        rows = engine.report().rows
        assert (rows.rows, rows.resident, rows.faults, rows.fault_seconds) == (464, 464, 0, 0.0)
        assert rows.lookups == rows.hits == 4 * 12 + 12


@pytest.mark.parametrize("rows", [1, 700, 5000, None])
def test_any_number_of_rows_in_memory_gives_the_same(
    bundle: Bundle, expected: dict[tuple[str, int], torch.Tensor], rows: int | None
) -> None:
    budget = smallest_budget(bundle, rows=rows)
    with wp.Engine(bundle, EngineConfig(budget=budget, rows=rows)) as engine:
        for seed in range(4):
            for task in TASKS:
                assert torch.equal(logits(engine.activate(task), texts(seed)), expected[task, seed])
        report = engine.report()
        assert report.rows.faults > 0
        assert report.rows.fault_seconds > 0
        assert report.memory.total <= budget
        assert report.memory.rows == (footprint(bundle).rows if rows is None else rows)
        assert report.rows.resident_bytes <= report.memory.rows
        assert report.bytes_read >= report.rows.bytes_read > 0


def test_the_printed_budget_is_enough_and_one_byte_less_is_not(bundle: Bundle) -> None:
    with pytest.raises(BudgetError) as refused:
        wp.Engine(bundle, EngineConfig(budget=1000))
    least = refused.value.smallest
    assert "rows" in str(refused.value)
    wp.Engine(bundle, EngineConfig(budget=least)).close()
    with pytest.raises(BudgetError):
        wp.Engine(bundle, EngineConfig(budget=least - 1))


def test_the_budget_that_a_refusal_names_has_the_least_rows(bundle: Bundle) -> None:
    least = smallest_budget(bundle)
    with pytest.raises(BudgetError) as refused:
        wp.Engine(bundle, EngineConfig(budget=least, real_time=TASKS))
    said = re.search(r"would do is (\d+) bytes \([^)]*\)\.$", str(refused.value))
    assert said is not None
    smallest = int(said[1])
    assert least < smallest == refused.value.smallest
    with wp.Engine.from_pretrained(bundle.path, budget=smallest, real_time=TASKS) as engine:
        assert set(engine.report().active) == set(TASKS)
        assert engine.report().memory.rows == footprint(bundle).rows
    with pytest.raises(BudgetError):
        wp.Engine.from_pretrained(bundle.path, budget=smallest - 1, real_time=TASKS)


def test_the_warning_of_reloads_names_a_budget_that_holds_all_with_the_least_rows(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, EngineConfig(budget=smallest_budget(bundle))) as engine:
        for task in [*TASKS, *TASKS]:
            engine.activate(task)
    said = re.search(r"need (\d+) pages.* a budget of (\d+) bytes \([^)]*\) would hold them all", caplog.text)
    assert said is not None
    with wp.Engine.from_pretrained(bundle.path, budget=int(said[2])) as engine:
        assert engine.report().slots == int(said[1])
        assert engine.report().memory.rows == footprint(bundle).rows


def test_a_budget_is_shared_by_rows_and_blocks(bundle: Bundle) -> None:
    least, pages = smallest_budget(bundle), len(bundle.pages)
    before = (0, 0)
    with wp.Engine(bundle, EngineConfig(budget=least)) as engine:
        most = footprint(bundle).largest - footprint(bundle).rows + whole_rows(bundle) + pages * bundle.page_bytes
        for budget in range(least, most + 1, 1000):
            engine.set_budget(budget)
            report = engine.report()
            assert report.memory.total <= budget
            assert (report.memory.rows, report.slots) >= before
            before = report.memory.rows, report.slots
        engine.set_budget(most)
        report = engine.report()
        assert (report.memory.rows, report.slots) == (whole_rows(bundle), pages)
        assert report.memory.total == most


def test_a_stated_part_of_the_budget_is_for_rows(bundle: Bundle) -> None:
    with wp.Engine.from_pretrained(bundle.path, rows="4KiB") as engine:
        assert engine.report().memory.rows == 4096
        assert engine.report().slots == len(bundle.pages)
    with wp.Engine.from_pretrained(bundle.path, rows="1GiB") as engine:
        assert engine.report().memory.rows == whole_rows(bundle)


def test_a_row_that_isnt_there_is_refused_as_torch_does(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine, engine.task("animal") as module, torch.inference_mode():
        inputs = texts(0)
        inputs["input_ids"][1, 3] = 400
        with pytest.raises(IndexError, match="index out of range"):
            module(**inputs)


@pytest.mark.slow
def test_growing_keeps_tables_and_answers(
    bundle: Bundle, expected: dict[tuple[str, int], torch.Tensor], tmp_path: Path
) -> None:
    import tiny

    content = tiny.wordy(tmp_path)
    del content["block"], content["page"], content["rows"], content["dtype"]
    content["tasks"] = {"pet": tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    grown = wp.compile(content, out=tmp_path / "grown.bundle", base=bundle.path)
    assert verify(grown.path).problems == ()
    assert (grown.row_ids == bundle.row_ids).all()
    assert not set(grown.manifest.resident_reasons) & set(bundle.row_tables)
    with wp.Engine(grown, EngineConfig(budget=smallest_budget(grown))) as engine:
        logits(engine.activate("pet"), texts())
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task), texts()), expected[task, 0])


@pytest.mark.slow
def test_an_engine_takes_over_a_grown_bundle(
    bundle: Bundle, expected: dict[tuple[str, int], torch.Tensor], tmp_path: Path
) -> None:
    import tiny

    path = Path(shutil.copytree(bundle.path, tmp_path / "a.bundle"))
    content = tiny.wordy(tmp_path)
    del content["block"], content["page"], content["rows"], content["dtype"]
    content["tasks"] = {"pet": tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    with wp.Engine(Bundle.open(path), EngineConfig(budget=smallest_budget(bundle) + 200_000)) as engine:
        wp.compile(content, out=path, base=path, force=True)
        assert engine.reload().added == ("pet",)
        logits(engine.activate("pet"), texts(3))
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task), texts(1)), expected[task, 1])


def test_on_a_gpu_tables_are_whole_and_no_rows_are_kept_beside_them(bundle: Bundle) -> None:
    copier = LateCopier()
    with wp.Engine(bundle, EngineConfig(device="cuda"), staging=Staging(copier, 1)) as engine:
        assert engine.report().rows is None
        engine.set_budget(engine.report().budget + (1 << 20))
        assert engine.report().rows is None
        assert not engine._open.rows.caches
    copier.finish()
