"""Texts that are read and continued in steps, against transformers' own `generate` in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from weightpager.answers import model as forward_size
from weightpager.answers.decoding import GrowingTexts, See
from weightpager.answers.model import Activations, Integers
from weightpager.answers.work import Sampling
from weightpager.backends.torch.generation import bytes_per_token, new_cache, reads_in_pieces, without_cache
from weightpager.backends.torch.torch_model import TorchModel

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": None}
ROTARY = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
PLAIN = {"do_sample": False, "pad_token_id": 0}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY)),
    "window": lambda: MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=24)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**ROTARY, head_dim=8)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=256)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=None)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SMALL)),
}


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_size, "PIECE", 16)


def until(steps: int) -> See:
    """A pause after so many more tokens."""
    left = [steps]

    def see(tokens: Integers) -> np.ndarray:
        left[0] -= 1
        return np.full(len(tokens), left[0] <= 0)

    return see


def begun(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> GrowingTexts:
    return TorchModel(module).grow(ids.numpy(), mask.numpy(), Sampling(), 0)


def model(name: str) -> Any:
    torch.manual_seed(3)
    return MODELS[name]().eval().requires_grad_(False)


def prompts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    ids = torch.randint(4, 64, (len(lengths), max(lengths)))
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : max(lengths) - length], mask[row, : max(lengths) - length] = 0, 0
    return ids, mask


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [(5,), (100,), (70, 61, 3)])
def test_texts_in_steps_are_those_of_one_call(
    name: str, lengths: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    module, (ids, mask) = model(name), prompts(*lengths)
    wanted = module.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, **PLAIN)
    texts, pieces = begun(module, ids, mask), 0
    while texts.unread:
        texts.read_piece()
        pieces += 1
    for done in range(0, 20, 5):
        texts.grow(20 - done, until(5))
    assert pieces == -(-max(lengths) // 16) - 1
    assert np.array_equal(texts.ids, wanted)
    assert "padding" not in caplog.text


def test_a_text_goes_on_alone_where_others_have_ended() -> None:
    module, (ids, mask) = model("llama"), prompts(40, 33, 40)
    wanted = module.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, **PLAIN)
    texts = begun(module, ids, mask)
    texts.grow(12, until(4))
    texts.keep([1])
    texts.grow(8, until(8))
    assert np.array_equal(texts.ids, wanted[1:2])


def test_a_model_that_keeps_other_states_is_read_and_continued_at_once() -> None:
    torch.manual_seed(3)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=None)
    module, (ids, mask) = MambaForCausalLM(config).eval().requires_grad_(False), prompts(40)
    wanted = module.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, **PLAIN)
    texts = begun(module, ids, mask)
    assert not texts.stoppable
    assert not texts.unread
    texts.grow(8, until(8))
    assert np.array_equal(texts.ids, wanted)
    assert bytes_per_token(config, 4) == 0  # states don't grow with the text


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    assert bytes_per_token(LlamaConfig(**ROTARY), 4) == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("rope", "pieces", "stops"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, True, True),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, False, False),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            },
            False,
            True,
        ),
    ],
)
def test_no_prompt_is_read_in_pieces_whose_length_changes_how_it_is_read(
    rope: dict[str, Any], pieces: bool, stops: bool
) -> None:
    config = LlamaConfig(**ROTARY, rope_parameters=rope)
    assert reads_in_pieces(config) is pieces
    assert (new_cache(config) is not None) is stops


def test_a_piece_is_bounded_in_tokens_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_size, "PIECE", 256)
    activations = Activations(per_token=1000, per_pair=64)
    sizes = [activations.piece(texts, read, 131_072) for texts in (1, 8, 128) for read in (0, 8192, 131_000)]
    assert sizes == [256, 32, 16, 256, 16, 2, 16, 1, 1]
    for texts in (1, 8):
        for read in (0, 1000, 8192, 100_000):
            tokens = activations.piece(texts, read, 131_072)
            assert tokens == 1 or activations.fit(texts, tokens, read + tokens)
    assert activations.piece(1, 100, 101) == 1


def test_nothing_is_kept_where_nobody_goes_on() -> None:
    ids = torch.tensor([[4, 5, 6]])
    for module in (model("llama"), model("gpt2")):
        with torch.inference_mode():
            assert next(iter(module.base_model(ids, **without_cache(module.base_model)).values())).shape[1] == 3
            assert getattr(module(ids, **without_cache(module)), "cache", None) is None
