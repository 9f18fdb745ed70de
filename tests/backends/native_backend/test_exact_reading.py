"""What is read of a text is the same bits however it is cut, where weights are whole numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
import weightpager as wp
from families import ALL_DECODERS, WITHOUT_GRAPH, config_of
from weightpager.answers.model import Floats, TaskModel
from weightpager.kernels.choice import NATIVE

if not NATIVE:
    pytest.skip("no native kernels", allow_module_level=True)

TOKENS = 150
POSITIONS = {"max_position_embeddings": 256, "n_positions": 256}
IDS = np.array([random.Random(0).choices(range(4, 16), k=TOKENS)])

Made = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of a family's tiny model, whole, in a dtype."""
    done: dict[tuple[str, str], Path] = {}

    def make(family: str, dtype: str) -> Path:
        if (family, dtype) not in done:
            folder = tmp_path_factory.mktemp(family)
            given = ALL_DECODERS[family]
            more = {key: value for key, value in POSITIONS.items() if key in given or key != "n_positions"}
            torch.manual_seed(0)
            config = config_of(family, {**given, **more, "initializer_range": 0.3})
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
            tiny.tokenizer().save_pretrained(folder / "model")
            tasks: dict[str, Any] = {"chat": {"kind": "text-generation"}}
            content = {"model": str(folder / "model"), "block": "8x8", "page": "4KiB", "dtype": dtype, "tasks": tasks}
            done[family, dtype] = wp.compile(content, folder / "a.bundle", cache=False).path
        return done[family, dtype]

    return make


def read(model: TaskModel, ends: Sequence[int]) -> Floats:
    """The hidden states of a text that is read up to each of these ends."""
    reading, mask = model.reading(1, TOKENS), np.ones_like(IDS)
    return np.concatenate([reading.hidden(IDS[:, :end], mask[:, :end]) for end in ends], 1)


def is_exact(bundle: Path, seed: int) -> tuple[bool, bool]:
    """Whether a model says so, and whether it is so."""
    drawn = random.Random(seed)
    with wp.load(bundle, backend="native") as engine, engine.task("chat"):
        model = engine.model("chat")
        whole = read(model, [TOKENS])
        cuts = [[*range(step, TOKENS, step), TOKENS] for step in (1, 2, 3, 64)]
        cuts += [sorted({*drawn.sample(range(1, TOKENS), drawn.randrange(1, 40)), TOKENS}) for _ in range(3)]
        assert np.isfinite(whole).all()
        return model.reading(1, 1).exact, all(np.array_equal(read(model, ends), whole) for ends in cuts)


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_every_kernel_gives_a_token_the_same_bits(
    made: Made, family: str, dtype: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_ISA", isa)
    assert is_exact(made(family, dtype), NATIVE.index(isa)) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in ALL_DECODERS if family not in WITHOUT_GRAPH])
def test_every_family_gives_a_token_the_same_bits(made: Made, family: str) -> None:
    assert is_exact(made(family, "int4"), 1) == (True, True)


def test_weights_of_floats_promise_nothing(made: Made) -> None:
    assert is_exact(made("Llama", "bfloat16"), 1)[0] is False
