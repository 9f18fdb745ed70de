"""The table of whole processes, from rows that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import TypeAdapter, ValidationError

from benchmarks.device.install import main as measure_install
from benchmarks.device.measured import Measured, Row, Section, check, read, tell
from benchmarks.report import results_file, run
from benchmarks.report.device import commands, processes
from benchmarks.report.results_file import Results

MIB = float(1 << 20)


def text_row(resident: float, **more: float) -> Row:
    return {"first_output_ms": 300.0, "ms_16x64": 80.0, "peak_bytes_of_texts": resident, "peak_bytes": 2 * MIB, **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "device.json"
    rows = {"native": text_row(MIB, run_ms=600.0), "onnx_sessions_int8": text_row(3 * MIB)}
    tell("texts", "two texts", rows, "benchmarks.device", found)
    install: Row = {"bytes": 9 * MIB, "packages": 2.0, "sources": 0.0}
    tell("install", "by pip", {"native": install, "llama.cpp": install | {"sources": 1.0}}, "benchmarks.device", found)
    row: Row = {"first_output_ms": 90.0, "decode_per_s": 1062.25, "peak_bytes_short": MIB, "peak_bytes": MIB}
    tell("decoder", "greedily", {"llama.cpp small.gguf": row}, "benchmarks.device.decoder", found)
    return found


def test_rows_that_are_measured_again_leave_the_others(file: Path) -> None:
    tell("texts", "two texts", {"native": text_row(5 * MIB)}, "benchmarks.device", file)
    found = read(file)
    assert found.keys() == {"texts", "install", "decoder"}
    assert found["texts"].rows == {"native": text_row(5 * MIB), "onnx_sessions_int8": text_row(3 * MIB)}


@pytest.mark.parametrize("change", [{"machine": {"cpu": "another"}}, {"commit": "another"}, {"about": "another"}])
def test_rows_of_another_run_are_not_mixed_with_these(file: Path, change: dict[str, Any]) -> None:
    known = read(file)
    other = known["texts"].model_copy(update=change)
    before = TypeAdapter(dict[Section, Measured]).dump_json({**known, "texts": other})
    file.write_bytes(before)
    with pytest.raises(typer.BadParameter, match="expected the other rows of 'texts' to have the same"):
        tell("texts", "two texts", {"native": text_row(5 * MIB)}, "benchmarks.device", file)
    assert file.read_bytes() == before
    with pytest.raises(typer.BadParameter, match="found 'another'"):
        check("texts", "two texts", ["native"], file)
    both = {"native": text_row(5 * MIB), "onnx_sessions_int8": text_row(MIB)}
    check("texts", "two texts", both, file)
    tell("texts", "two texts", both, "benchmarks.device", file)
    assert read(file)["texts"].rows == both


def test_a_process_is_a_line(file: Path) -> None:
    text = processes(read(file))
    native = (
        "| texts | weightpager, native code | 1.0 MiB; 2.0 MiB | 0.30 s; `run` in all 0.60 s | 16 × 64 tokens 80 ms |"
    )
    assert f"{native} 9.0 MiB |" in text
    assert (
        "| texts | ONNX Runtime, int8, a session a task | 3.0 MiB; 2.0 MiB | 0.30 s | 16 × 64 tokens 80 ms | – |"
        in text
    )
    llama = "| decoder | llama.cpp, small.gguf | 1.0 MiB; 1.0 MiB | 0.09 s | decodes 1062 tokens a second |"
    assert f"{llama} 9.0 MiB, and a compiler |" in text
    assert text.index("| texts |") < text.index("| decoder |")


def test_the_least_and_the_most_are_shown_where_they_are_known(file: Path) -> None:
    row = text_row(MIB) | {"first_output_ms_spread": [250.0, 410.0], "ms_16x64_spread": [79.0, 101.4]}
    tell("texts", "two texts", {"native": row}, "benchmarks.device", file)
    assert "| 0.30 s (0.25 to 0.41) | 16 × 64 tokens 80 ms (79 to 101) |" in processes(read(file))


def test_how_it_was_measured_is_said(file: Path) -> None:
    said = [line.split(".")[0] for line in commands(read(file))]
    assert said == ["texts: two texts", "install: by pip", "decoder: greedily"]


def test_the_page_has_the_table_where_there_is_one(file: Path) -> None:
    results = file.with_name("results.json")
    results_file.write(results, Results())
    assert processes(read(file)) in run.render(Results(), results, file.with_name("results.md"))
    file.unlink()
    assert "A device's process" not in run.render(Results(), results, file.with_name("results.md"))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    found = tmp_path / "device.json"
    found.write_text('{"cars": {}}')
    with pytest.raises(ValidationError):
        read(found)


def test_rows_that_a_run_cannot_replace_are_told_before_it_measures(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = read(file)
    other = known["install"].model_copy(update={"rows": {"native": {}, "gone": {}}, "commit": "another"})
    file.write_bytes(TypeAdapter(dict[Section, Measured]).dump_json({**known, "install": other}))
    monkeypatch.setattr("benchmarks.device.install._fetched", lambda _: pytest.fail("it measured"))
    with pytest.raises(typer.BadParameter, match="found 'another'"):
        measure_install(Path("weightpager.whl"), file, only="")
