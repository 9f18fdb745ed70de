"""What commands tell of rows that come on demand, and how their part of a budget is stated."""

from __future__ import annotations

import json
import re
from pathlib import Path

from command import Command
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, whole_rows
from weightpager.config import format_enough
from weightpager.engine import Engine
from weightpager.runtime.budget import needs_of, smallest_budget

WORDS = "base_model.embeddings.word_embeddings.weight"


def test_inspect_shows_tables_and_what_their_rows_serve(weightpager: Command, wordy_bundle: Path) -> None:
    shown = weightpager("inspect", wordy_bundle)
    assert f"rows on demand: {WORDS}, 400 rows" in shown.out
    assert "1/8 100%" in shown.out
    facts = json.loads(weightpager("inspect", wordy_bundle, "--json").out)
    assert [(table["rows"], table["columns"]) for table in facts["rows"]] == [(64, 64), (400, 64)]
    assert facts["row_bytes"] == whole_rows(Bundle.open(wordy_bundle))
    with Engine.from_pretrained(wordy_bundle) as engine:
        assert facts["largest_budget"] == engine.report().budget
    least = facts["smallest_budget"]
    with Engine.from_pretrained(wordy_bundle, budget=least) as engine:
        assert engine.report().memory.rows == facts["least_row_bytes"]


def test_a_budget_for_all_pages_is_spent_on_them_before_more_rows(weightpager: Command, wordy_bundle: Path) -> None:
    facts = json.loads(weightpager("inspect", wordy_bundle, "--json").out)
    shown = " ".join(weightpager("inspect", wordy_bundle).out.split())
    budget = facts["all_pages_budget"]
    assert f"budget that holds all pages: switches read nothing │ {format_enough(budget)}" in shown
    with Engine.from_pretrained(wordy_bundle, budget=budget - 1) as engine:
        assert engine.report().slots < facts["pages"]
    with Engine.from_pretrained(wordy_bundle, budget=budget) as engine:
        for task in [*engine.bundle.tasks, *engine.bundle.tasks]:
            engine.activate(task)
        report = engine.report()
        assert (report.slots, report.reloaded_pages, report.switches[-1].bytes) == (facts["pages"], 0, 0)
        assert report.memory.rows == facts["least_row_bytes"]


def test_plan_counts_with_rows(weightpager: Command, wordy_bundle: Path) -> None:
    bundle = Bundle.open(wordy_bundle)
    for stated in (None, 5000):
        least, needs = smallest_budget(bundle, rows=stated), needs_of(bundle, rows=stated)
        for budget in range(least, least + 150_000, 9_000):
            with Engine.from_pretrained(wordy_bundle, budget=budget, rows=stated) as engine:
                report = engine.report()
                assert report.memory.rows == needs.rows(budget)
                assert report.slots == min(len(bundle.pages), needs.room(budget) // 4096)
    size = str(smallest_budget(bundle, rows=5000))
    arguments = ("plan", wordy_bundle, "--to", "animal", "--budget", size, "--rows", "5000", "--json")
    assert json.loads(weightpager(*arguments).out)["row_bytes"] == 5000


def test_run_takes_a_size_for_rows(weightpager: Command, wordy_bundle: Path) -> None:
    found = weightpager("run", wordy_bundle, "--task", "animal", "--rows", "1KiB", "--json", "a cat")
    least = footprint(Bundle.open(wordy_bundle)).rows
    note = f"--rows 1.0 KiB is less than the least that they get where none are stated, {format_enough(least)}"
    assert note in " ".join(found.err.split())
    assert "less than" not in weightpager("run", wordy_bundle, "-t", "animal", "--rows", str(least), "a cat").err
    engine = json.loads(found.out)["engine"]
    spoken = " ".join(weightpager("run", wordy_bundle, "--task", "animal", "--rows", "1KiB", "a cat").err.split())
    assert re.search(r"loaded [\d.]+ KiB in [\d.]+ ms, and \d+ rows of embedding tables in [\d.]+ ms; weights", spoken)
    assert engine["memory"]["rows"] == 1024
    assert engine["rows"]["lookups"] > engine["rows"]["hits"] > 0
    refused = weightpager("run", wordy_bundle, "--task", "animal", "--budget", "1KiB", "--rows", "1KiB", "a cat")
    assert refused.code != 0
    assert "smallest budget" in refused.err
