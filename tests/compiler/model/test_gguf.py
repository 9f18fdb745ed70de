"""Models that come as GGUF files: as transformers has them, and hostile ones."""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_gguf
import tiny_pairs
import weightpager as wp
from command import Command
from weightpager.backends.torch.export import export_task
from weightpager.compiler.model import gguf_model
from weightpager.compiler.model.gguf_header import GgufHeader
from weightpager.compiler.model.gguf_model import directory_of
from weightpager.errors import CompileError, ConfigError
from weightpager.machine.memory import Memory

pytest.importorskip("transformers.integrations.gguf", reason="an older transformers reads no GGUF files")

IDS = torch.tensor([[5, 40, 300, 17, 9, 200]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of floats, with the model beside it."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf.write(folder / "tiny.gguf", folder / "model")
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.mark.parametrize(("kind", "limit"), [("F32", 0), ("F16", 1e-3), ("Q8_0", 0.02), ("Q4_1", 0.2), ("Q4_0", 0.3)])
def test_values_and_words_are_the_files(
    tmp_path: Path, kind: str, limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", tmp_path / "model", kind)
    with caplog.at_level(logging.INFO):
        found = directory_of(tmp_path / "tiny.gguf", tmp_path / "cache")
    assert f" of {kind}" in caplog.text
    read = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
    with torch.inference_mode():
        ours, wanted = read(IDS).logits, model(IDS).logits
    assert (ours - wanted).norm() <= limit * wanted.norm() + 1e-5
    own, ids = AutoTokenizer.from_pretrained(tmp_path / "model"), AutoTokenizer.from_pretrained(found)
    for text in (*tiny_pairs.TEXTS, "12345 a1b22", "  <s>red</s>\n"):
        assert ids(text, add_special_tokens=False).input_ids == own(text, add_special_tokens=False).input_ids
    assert ids.chat_template == tiny_pairs.TEMPLATE
    assert [*(tmp_path / "cache").iterdir()] == [found]


@pytest.mark.parametrize(("kind", "least", "most"), [("Q4_0", 0.0, 0.004), ("Q4_1", 0.02, 0.2)])
def test_int4_pages_hold_some_values_nearly_as_they_are(
    tmp_path: Path, cached: Path, kind: str, least: float, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tmp_path / "model", kind)
    bundle = wp.compile(tmp_path / "tiny.gguf", tmp_path / "a.bundle", cache=False)
    assert ("int4 pages round values of Q4_1 once more" in caplog.text) == (kind == "Q4_1")
    export_task(bundle, "chat", tmp_path / "ours")
    (directory,) = cached.iterdir()
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (tmp_path / "ours", directory))
    errors = [(ours[name] - theirs[name]).norm() / theirs[name].norm() for name in theirs if "proj" in name]
    assert least <= min(errors)
    assert max(errors) <= most


def test_a_compile_takes_it_for_a_model(plain: Path, cached: Path, tmp_path: Path, weightpager: Command) -> None:
    for _ in range(2):  # the second one takes the directory that is there
        done = weightpager("compile", plain / "tiny.gguf", "--out", tmp_path / "a.bundle", "--force")
        assert done.code == 0, done.err
    assert len([*cached.iterdir()]) == 1
    wp.compile(plain / "model", tmp_path / "b.bundle", cache=False)
    found, inputs = [], {"input_ids": IDS.numpy(), "attention_mask": np.ones((1, 6), int)}
    for name in ("a", "b"):
        with wp.load(tmp_path / f"{name}.bundle") as engine, engine.task("chat"):
            found.append(engine.model("chat").logits(inputs))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pre": "default"}, "expected a known way to split texts into words, found 'default'"),
        ({"split": 2}, "expected the whole model, found one of 2 files"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tmp_path / "model", settings=settings)
    with pytest.raises(CompileError, match=says):
        directory_of(tmp_path / "tiny.gguf", tmp_path / "cache")


def test_what_does_not_fit_into_memory_is_refused(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_model, "read_memory", lambda: Memory(1000, 1000))
    with pytest.raises(CompileError, match=r"expected .* of free memory to dequantise it"):
        directory_of(plain / "tiny.gguf", tmp_path / "cache")


def changed(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: b"", "expected a GGUF file"),
        (lambda _: b"PK" * 50, "the letters GGUF"),
        (changed(4, struct.pack("<I", 1)), "version 2 or 3"),
        (changed(4, struct.pack(">I", 3)), "version 2 or 3"),
        (changed(8, struct.pack("<Q", 2**60)), "at most 131,072 tensors"),
        (changed(16, struct.pack("<Q", 2**16)), "expected"),
        (changed(24, struct.pack("<Q", 2**63)), "bytes from byte 32 on"),
        (lambda content: content[:-1000], "to end at byte"),
        (lambda content: content.replace(b"llama", b"bloom"), "expected a model like llama"),
        (lambda content: content.replace(b"gpt2", b"rwkv"), "expected a tokenizer of byte pairs"),
    ],
)
def test_files_that_are_damaged_or_unknown_are_refused(
    plain: Path, tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(change((plain / "tiny.gguf").read_bytes()))
    with pytest.raises(CompileError, match=says):
        directory_of(file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@given(st.integers(0, 2**32), st.sampled_from([1, 4, 8]), st.integers(0, 2**64 - 1))
def test_any_damage_of_the_header_is_read_in_no_time(plain: Path, seed: int, size: int, value: int) -> None:
    content = bytearray((plain / "tiny.gguf").read_bytes())
    at = random.Random(seed).randrange(4, 12000)
    content[at : at + size] = value.to_bytes(8, "little")[:size]
    file = plain / "damaged.gguf"
    file.write_bytes(content)
    try:
        header = GgufHeader.read(file)
    except CompileError:
        return
    assert header.parameters < 2**62


def test_values_that_are_no_numbers_are_refused(plain: Path, cached: Path, tmp_path: Path) -> None:
    content = (plain / "tiny.gguf").read_bytes()
    (tmp_path / "nan.gguf").write_bytes(content[:-64] + b"\xff" * 64)
    given = {"model": str(tmp_path / "nan.gguf"), "tasks": {"chat": {"kind": "text-generation"}}}
    with pytest.raises(CompileError, match="NaN|infinit|finite"):
        wp.compile(given, tmp_path / "a.bundle", cache=False)
    assert not (tmp_path / "a.bundle").exists()
    assert cached.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: expected a model directory, found none at .*nowhere\.gguf"):
        wp.compile({"model": str(tmp_path / "nowhere.gguf"), "tasks": {}}, tmp_path / "a.bundle")
