"""What is found before hours are spent."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny

from weightpager.compiler import task_file
from weightpager.compiler.prepare import prepare
from weightpager.errors import CompileError


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_words_that_only_the_tokenizer_knows_are_refused(tmp_path: Path, kind: str) -> None:
    tiny.bert(tmp_path / "model", vocab_size=len(tiny.WORDS) - 4)  # film, the, one and two are new
    content = {"model": "model", "calibration": {"max_length": 32}, "tasks": tiny.tasks(tmp_path, kind)}
    expected = rf"tasks\.{kind}: expected words that the model knows, with ids below 10, found '(film|the)', 1\d; give"
    with pytest.raises(CompileError, match=expected):
        prepare(task_file.from_dict(content, tmp_path))
