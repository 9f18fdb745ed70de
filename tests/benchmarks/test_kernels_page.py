"""The page of measured kernels, from rows that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import row_file
from benchmarks.kernels import page
from benchmarks.kernels.__main__ import Row, read, replace_rows
from benchmarks.kernels.page import GOALS

KNOWN = Row(
    kernel="paged_linear",
    isa="avx512",
    shape="Model 64x32",
    block="16x32",
    dtype="bfloat16",
    sparsity=0.5,
    tokens=1,
    ms=0.5,
    dense_ms=1.0,
    prepacked_ms=0.8,
    speedup=2.0,
    gbps=9.0,
    read_gbps=10.0,
    cpu="A processor",
)


def row(**changes: Any) -> Row:
    return replace(KNOWN, **changes)


def test_what_misses_its_goal_is_bold() -> None:
    reached, missed = GOALS["bfloat16", 0.5, 1], GOALS["bfloat16", 0.5, 8]
    rows = [
        row(speedup=reached),
        row(dtype="int8", ms=0.4, speedup=2.5),
        row(tokens=8, speedup=missed - 0.01),
        row(tokens=8, dtype="int8"),
    ]
    text = page.page(rows, "kernels.json")
    assert "## avx512 on A processor, against" in text
    assert "| sparsity | 1 tokens | 8 tokens |" in text
    assert f"| 50% | {reached:.2f} ({reached:.2f}) | **{missed - 0.01:.2f} ({missed - 0.01:.2f})** |" in text
    assert "90% of 10 GB/s" in text
    assert "**1.25 (1.25)**" in text  # int8 is asked to be faster than that
    assert "| 1.25 | 1.25 |" in text  # prepacked over unpacked


def test_int4_is_held_against_int8_and_bfloat16() -> None:
    rows = [row(), row(dtype="int8", ms=0.3), row(dtype="int4", ms=0.1), row(dtype="int4", tokens=32)]
    text = page.page([*rows, row(tokens=32, ms=0.4)], "kernels.json")
    assert "| 50% | 3.00 (3.00) |" in text
    assert "| 50% | **0.80 (0.80)** |" in text
    assert "| 50% | - |" not in text


def test_a_whole_model_has_a_table_of_its_own() -> None:
    rows = [row(kernel="decode", tokens=24, speedup=1.2), row(kernel="prefill", tokens=512, speedup=1.4)]
    text = page.page(rows, "kernels.json")
    assert "## A whole model" in text
    assert "**1.20**" in text
    assert "| 1.40 |" in text


def test_without_bfloat16_only_few_tokens_have_goals() -> None:
    rows = [row(isa="avx2", prepacked_ms=None, speedup=0.1, tokens=tokens, sparsity=0.5) for tokens in (1, 512)]
    text = page.page([*rows, row(isa="avx2", prepacked_ms=None, dtype="int8", ms=0.1)], "kernels.json")
    assert "| 50% | **0.10 (0.10)** | 0.10 (0.10) |" in text


def test_calls_are_told_in_words() -> None:
    rows = [row(kernel="module", ms=0.006, dense_ms=0.004), row(kernel="alternating", ms=0.28, dense_ms=0.27)]
    text = page.page(rows, "kernels.json")
    assert "adds 2.0 µs" in text
    assert "0.280 ms in turn, and 0.270 ms in all when each runs by itself" in text


def test_rows_replace_those_that_measured_the_same(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    replace_rows(file, [row(), row(tokens=8), row(shape="Other 64x32"), row(isa="avx2")], "benchmarks.kernels")
    replace_rows(file, [row(ms=0.25, tokens=8)], "benchmarks.kernels.calls")
    found = {(one.isa, one.shape, one.tokens): one for one in read(file)}
    assert len(found) == 4
    assert found["avx512", "Model 64x32", 8].ms == 0.25
    assert found["avx512", "Model 64x32", 1].ms == found["avx2", "Model 64x32", 1].ms == 0.5
    commands = [found["avx512", "Model 64x32", tokens].command for tokens in (1, 8)]
    assert [text.split()[2] for text in commands] == ["benchmarks.kernels", "benchmarks.kernels.calls"]
    assert "benchmarks.kernels.calls" in page.page(read(file), "kernels.json").split("## Where the rows come from")[1]


def test_rows_of_another_processor_are_not_mixed_with_these(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    row_file.write(file, [row(tokens=8), row(isa="avx2"), row(kernel="decode")])
    replace_rows(file, [row()], "benchmarks.kernels")
    assert {(one.kernel, one.isa, one.tokens) for one in read(file) if one.cpu == KNOWN.cpu} == {
        ("paged_linear", "avx2", 1),
        ("decode", "avx512", 1),
    }
    assert [one.tokens for one in read(file) if one.cpu != KNOWN.cpu] == [1]


def test_rows_without_a_command_are_told_beside_those_with_one() -> None:
    def sources(*rows: Row) -> str:
        return page.page(rows, "kernels.json").partition("## Where the rows come from")[2]

    noted = row(command="python -m benchmarks.kernels", commit="abc")
    assert sources(noted, row(tokens=8)).strip().splitlines() == [
        "* `python -m benchmarks.kernels`, commit abc",
        "* others: earlier, not noted",
    ]
    assert "others" not in sources(noted)


def test_what_was_not_measured_of_a_layer_is_a_dash() -> None:
    text = page.page([row(), row(tokens=8), row(sparsity=0.0), row(shape="Other 64x32")], "kernels.json")
    assert "| 0% | 2.00 (2.00) | - |" in text
    assert "| 16x32 bfloat16 0% | 90% of 10 GB/s | - |" in text


def test_a_page_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="expected a file of rows"):
        page.main(tmp_path / "none.json", tmp_path / "page.md")
