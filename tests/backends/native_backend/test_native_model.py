"""What answers get of native code, against what they get of torch's modules of the same bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

import tiny
import weightpager as wp
from families import ALL_DECODERS, ALL_ENCODERS, config_of
from weightpager.answers.batches import CACHED_TOKENS
from weightpager.answers.decoding import Sampler, softmax
from weightpager.answers.generation import completions
from weightpager.answers.model import Integers, TaskModel
from weightpager.answers.query import padded
from weightpager.answers.work import Sampling
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.backends.native.native_model import NativeModel
from weightpager.backends.torch.architecture import context_length
from weightpager.kernels.choice import NATIVE
from weightpager.nn.skeleton import empty_on_meta

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")

TEXTS = [[4, 9, 12, 7, 3, 5, 6, 11], [15, 5, 3], [6] * 20]
CLOSE = 2e-5


def engines(bundle: Path) -> tuple[wp.Engine, wp.Engine]:
    native, torch = (wp.Engine.from_pretrained(bundle, backend=name) for name in ("native", "torch"))
    return native, torch


def grown(model: TaskModel, steps: tuple[int, ...]) -> Integers:
    """Tokens of some texts, continued in steps between which one of them ends."""
    batch = padded(TEXTS, 0, left=True)
    texts = model.grow(batch["input_ids"], batch["attention_mask"], Sampling(), 0)
    while texts.unread:
        texts.read_piece()
    seen: list[Integers] = []
    over = np.zeros(len(TEXTS), bool)

    def see(tokens: Integers) -> np.ndarray:
        seen.append(tokens)
        left.append(left.pop() - 1)
        over[np.isin(tokens, list(model.eos_token_ids))] = True  # as whoever asks for texts says
        return over | (left[-1] <= 0)

    for most in steps:
        left = [most]
        texts.grow(most + 5, see)
    return np.stack(seen)


@pytest.mark.parametrize("which", ["assistant", "wordy"])
def test_outputs_and_hidden_states(request: pytest.FixtureRequest, which: str) -> None:
    native, torch = engines(request.getfixturevalue(f"{which}_bundle"))
    batch = padded(TEXTS, 0)
    seen = batch["attention_mask"] != 0
    with native, torch:
        for task in native.bundle.tasks:
            ours, theirs = native.activate(task) and native.model(task), torch.activate(task) and torch.model(task)
            assert np.abs(ours.logits(batch) - theirs.logits(batch)).max() < CLOSE
            assert np.abs(ours.hidden(batch) - theirs.hidden(batch))[seen].max() < CLOSE
        assert (ours.vocab_size, ours.context, ours.eos_token_ids) == (
            theirs.vocab_size,
            theirs.context,
            theirs.eos_token_ids,
        )
        assert native.limits.context == torch.limits.context


@pytest.mark.parametrize("family", [*ALL_ENCODERS, *ALL_DECODERS])
def test_models_read_as_much_as_torch_says(family: str) -> None:
    """RoBERTa has two more positions than it can read tokens."""
    config = config_of(family, {**ALL_ENCODERS, **ALL_DECODERS}[family])
    with empty_on_meta():
        module = AutoModel.from_config(config)
    assert ModelConfig(json.loads(config.to_json_string())).limits(takes_images=False).context == context_length(module)


BEHIND_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def contexts(architecture: str, **settings: Any) -> tuple[int, int]:
    """Tokens that a model of 40 positions reads, by us and by torch."""
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = AutoConfig.for_model(architecture, **sizes, num_attention_heads=2, max_position_embeddings=40, **settings)
    with empty_on_meta():
        module = AutoModel.from_config(config)
    ours = ModelConfig(json.loads(config.to_json_string())).limits(takes_images=False).context
    return ours, context_length(module)


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("architecture", BEHIND_PADDING)
def test_rows_of_a_table_before_its_padding_are_no_positions(architecture: str, padding: int) -> None:
    begins = 1 if architecture == "mpnet" else padding
    assert contexts(architecture, pad_token_id=padding) == (39 - begins, 39 - begins)


def test_rotary_positions_begin_behind_no_padding() -> None:
    assert contexts("esm", pad_token_id=1, position_embedding_type="rotary") == (40, 40)


def test_decoders_go_on_with_the_same_tokens(writer_bundle: Path) -> None:
    native, torch = engines(writer_bundle)
    with native, torch:
        for task in native.bundle.tasks:
            ours, theirs = native.activate(task) and native.model(task), torch.activate(task) and torch.model(task)
            wanted = grown(theirs, (12,))
            assert np.array_equal(grown(ours, (12,)), wanted)
            assert np.array_equal(grown(ours, (1, 4, 7)), wanted)
            assert (ours.eos_token_ids, ours.vocab_size, ours.context) == (
                theirs.eos_token_ids,
                theirs.vocab_size,
                theirs.context,
            )


@pytest.mark.slow
def test_answers_are_the_same(writer_bundle: Path, assistant_bundle: Path, camera_bundle: Path, tmp_path: Path) -> None:
    pictures = [str(tiny.picture(tmp_path / f"{colour}.png", colour, size=(20, 18))) for colour in ("red", "blue")]
    for bundle, inputs in (
        (writer_bundle, ["red cat", "sun"]),
        (assistant_bundle, ["red cat"]),
        (camera_bundle, pictures),
    ):
        native, torch = engines(bundle)
        with native, torch:
            for task in native.bundle.tasks:
                found, wanted = native.predict(task, inputs), torch.predict(task, inputs)
                assert [each.label for each in found] == [each.label for each in wanted]
                assert [each.score for each in found] == pytest.approx([each.score for each in wanted], abs=1e-5)


LONG = np.full((1, 600), 4)
SHORT = np.array([[4, 9]])


@pytest.mark.parametrize(
    ("which", "ids", "mask", "error", "words"),
    [
        ("assistant", SHORT.astype(np.int32), SHORT, ValueError, "expected int64, found int32"),
        ("assistant", SHORT + 10**6, SHORT, IndexError, "1000004"),
        ("assistant", SHORT - 5, SHORT, IndexError, "-1"),
        ("assistant", LONG, LONG, ValueError, "600"),
        ("assistant", SHORT, LONG, ValueError, "600"),
        ("writer", SHORT.astype(np.int32), SHORT, ValueError, "expected int64, found int32"),
        ("writer", SHORT + 10**6, SHORT, IndexError, "1000004"),
        ("writer", SHORT[0], SHORT, ValueError, "expected"),
    ],
)
def test_wrong_inputs_are_no_fault_of_the_bundle(
    request: pytest.FixtureRequest, which: str, ids: Integers, mask: Integers, error: type[Exception], words: str
) -> None:
    with wp.Engine.from_pretrained(request.getfixturevalue(f"{which}_bundle"), backend="native") as engine:
        name = next(iter(engine.tasks))
        engine.activate(name)
        model = engine.model(name)
        for ask in (model.logits, model.hidden):
            with pytest.raises(error, match=words):
                ask({"input_ids": ids, "attention_mask": np.ones_like(mask)})


def test_texts_that_are_let_go_change_no_other(writer_bundle: Path) -> None:
    with wp.Engine.from_pretrained(writer_bundle, backend="native") as engine:
        engine.activate("animals")
        model, batch = engine.model("animals"), padded(TEXTS, 0, left=True)
        whole = grown(model, (6,))
        texts = model.grow(batch["input_ids"], batch["attention_mask"], Sampling(), 0)
        seen: list[Integers] = []

        def see(tokens: Integers) -> np.ndarray:
            seen.append(tokens)
            return np.full(len(tokens), len(seen) == 2)

        texts.grow(6, see)
        texts.keep([2, 0])
        texts.grow(4, see)
        assert np.array_equal(np.stack(seen[2:]), whole[2:][:, [2, 0]])


def test_prompts_run_together_as_far_as_blocks_of_their_caches_have_room(
    writer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    grow = NativeModel.grow

    def watched(model: NativeModel, ids: Integers, *rest: Any) -> Any:
        begun.append(len(ids))
        assert model.task.cache.tokens(len(ids), ids.shape[1] + 2) <= CACHED_TOKENS
        return grow(model, ids, *rest)

    monkeypatch.setattr(NativeModel, "grow", watched)
    with wp.load(writer_bundle, backend="native") as engine:
        engine.predict("animals", ["red"] * 70, max_new_tokens=2, batch_size=512)
        assert begun == [32, 32, 6]  # each of 64 tokens
        completions(engine.model("animals"), engine.reader(), padded([(4, 9)] * 70, 0, left=True), 2)
        assert begun[3:] == begun[:3]


def test_a_long_text_is_read_in_pieces(writer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(4, 16).repeat(4)
    with wp.Engine.from_pretrained(writer_bundle, backend="native") as engine:
        engine.activate("animals")
        model = engine.model("animals")
        whole = model.hidden({"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])})[0]
        monkeypatch.setattr("weightpager.answers.model.PIECE", 7)
        pieces, found = model.pieces(ids), []
        while not pieces.over:
            found.append(pieces.read_piece())
        assert [len(piece) for piece in found] == [7] * 6 + [6]
        assert np.abs(np.concatenate(found) - whole).max() < CLOSE


@pytest.mark.slow
@given(st.integers(0, 99), st.floats(0.05, 1.0), st.floats(0.1, 3.0))
def test_tokens_are_drawn_from_the_likeliest(seed: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)
    sampler = Sampler(Sampling(temperature, top_p, seed))
    again = Sampler(Sampling(temperature, top_p, seed))
    shares = softmax(logits / temperature)
    for _ in range(20):
        drawn = sampler.draw(logits)
        assert np.array_equal(drawn, again.draw(logits))
        for row, token in zip(shares, drawn, strict=True):
            assert row[row > row[token]].sum() < top_p + 1e-6


def test_shares_are_drawn_as_often_as_they_are_large() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    drawn = np.concatenate([Sampler(Sampling(1.0, 1.0, seed)).draw(logits) for seed in range(4000)])
    assert np.abs(np.bincount(drawn, minlength=4) / 4000 - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    assert Sampler(Sampling()).draw(logits).tolist() == [0]
