"""Figures of how the code is lived in that must not get worse unseen."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from benchmarks.house import calls_to_a_read, files_of_a_switch, measure


def test_a_read_is_handed_on_within_nine_calls(assistant_bundle: Path) -> None:
    calls = calls_to_a_read(assistant_bundle)
    assert calls[0] == "engine.py: activate"
    assert calls[-1] == "native_reads.py: start"
    assert len(calls) <= 9


def test_a_small_switch_passes_through_the_engine_the_pager_and_native_reads(assistant_bundle: Path) -> None:
    path = files_of_a_switch(assistant_bundle)
    assert {"engine/engine.py", "runtime/paging/pager.py"} <= set(path.python)
    assert any(name.startswith("csrc/load/") for name in path.native)
    assert not any(name.startswith(("csrc/program/", "csrc/operators/")) for name in path.native)


def test_what_is_counted() -> None:
    code = 'def f():\n    """Says more."""\n    return 1\n'
    texts = {
        "src/weightpager/a.py": code,
        "src/weightpager/lab/b.py": code * 2,
        "src/weightpager_lab/c.py": code,
        "benchmarks/d.py": code,
        "tests/test_e.py": code,
        "docs/api.md": "generated words",
        "docs/page.md": "three more words",
        "docs/decisions/archive/old.md": "two words",
        "README.md": "# One\n\nfour words\n",
        "pyproject.toml": "[[tool.importlinter.contracts]]\nname = 'x'\n",
    }
    house = measure({PurePosixPath(path): text for path, text in texts.items()})
    assert (house.files, house.folders, len(house.small_folders)) == (3, 3, 2)
    assert (house.product_lines, house.measuring_lines, house.test_lines) == (3, 12, 3)
    assert (house.functions[2], house.contracts, house.project_lines) == (1, 1, 2)
    assert (house.readme_lines, house.readme_words, house.docs_words, house.decisions_words) == (3, 4, 3, 2)
