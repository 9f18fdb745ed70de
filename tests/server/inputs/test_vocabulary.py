from __future__ import annotations

from functools import partial

import pytest
import torch
from msgspec import structs
from transformers import Phi3Config, Phi3ForSequenceClassification

import tiny
from weightpager.answers.encoding import embed
from weightpager.answers.model import Activations, ModelLimits
from weightpager.answers.work import Embed
from weightpager.backends.torch.architecture import uniform_length
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle import TaskEntry
from weightpager.errors import BundleFormatError, RequestError
from weightpager.server.inputs.vocabulary import Vocabulary

WRITER = TaskEntry(name="a", kind="language-modeling", classes=[], max_length=8, sparsity=0.5, dense=None, eval=None)


def limits(words: int, context: int, uniform_length: int | None = None) -> ModelLimits:
    return ModelLimits(words, context, uniform_length, in_pieces=False, activations=Activations(0, 0))


def vocabulary(words: int = 16, room: int | None = None) -> Vocabulary:
    return Vocabulary(tiny.reader(), limits(words, 8), room)


def test_texts_are_cut_for_classes_and_tags_only() -> None:
    found = vocabulary()
    text = "red cat sun one red cat sun one red"
    assert (len(found.cut(text, 6).ids), found.cut(text, 6).cut) == (6, 5)
    assert found.cut_words(text.split(), 6)[0] == found.cut(text, 6)
    assert found.cut(text, 11).cut == 0
    assert found.prompt("red cat", WRITER) == (4, 7)
    assert found.prompt("red cat", structs.replace(WRITER, add_bos_token=True)) == (2, 4, 7)
    assert found.prompt("", structs.replace(WRITER, add_bos_token=True)) == ()
    with pytest.raises(RequestError, match="at most 8 tokens, as the model can read, found 11"):
        found.embed(text)


def test_token_ids_in_place_of_a_text_are_checked_as_it_is() -> None:
    assert vocabulary().embed([4, 7]) == (4, 7)
    with pytest.raises(RequestError, match="found an empty text"):
        vocabulary().embed([])
    with pytest.raises(RequestError, match="at most 8 tokens, as the model can read, found 9") as refused:
        vocabulary().embed([4] * 9)
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(RequestError, match="from 0 to 15"):
        vocabulary().embed([16])


def test_a_continuation_gets_what_room_there_is() -> None:
    assert vocabulary().room((4, 7), None, 100, "prompt") == 6
    assert vocabulary().room((4, 7), None, 3, "prompt") == 3
    assert vocabulary(room=5).room((4, 7), None, 100, "prompt") == 3
    assert vocabulary().room((4, 7), 600, 5, "prompt") == 5  # the server would not generate 600
    for ids, wanted in (((), None), ((4,) * 8, None), ((4, 7), 7)):
        with pytest.raises(RequestError):
            vocabulary().room(ids, wanted, 100, "prompt")
    with pytest.raises(RequestError, match="found 8, which leaves no room for an answer"):
        vocabulary().room((4,) * 8, None, 100, "prompt")
    with pytest.raises(RequestError, match="found 2 and 7 to be generated"):
        vocabulary().room((4, 7), 7, 100, "prompt")
    with pytest.raises(RequestError, match="at most 5 tokens, as the server's --kv-reserve holds"):
        vocabulary(room=5).room((4, 7), 4, 100, "prompt")
    with pytest.raises(RequestError, match="at most 0 tokens, as the server's --kv-reserve holds"):
        vocabulary(room=0).room((4, 7), None, 100, "prompt")


def test_a_word_that_the_model_lacks_fails_alone() -> None:
    found = vocabulary(words=8)
    assert found.cut("red cat", 8).ids == (2, 4, 7, 3)
    by_prompt, by_cut = partial(found.prompt, task=WRITER), partial(found.cut, max_length=8)
    for read in (by_prompt, found.embed, by_cut, lambda text: found.cut_words([text], 8)):
        with pytest.raises(BundleFormatError, match="ids below 8"):
            read("three")
    with pytest.raises(RequestError, match="from 0 to 7"):
        found.checked([8], "prompt")


def test_who_reads_a_long_text_has_a_copy() -> None:
    found = vocabulary(room=5)
    other = found.copy()
    assert other._tokenizer is not found._tokenizer
    text = "red cat sun one red cat"
    assert other.cut(text, 6) == found.cut(text, 6)
    assert other.room((4, 7), None, 100, "prompt") == found.room((4, 7), None, 100, "prompt")


def phi(context: int = 32, until: int = 8) -> Phi3Config:
    """Embeds positions in another way as soon as one text of a batch is longer."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    return Phi3Config(
        **sizes,
        vocab_size=16,
        pad_token_id=0,
        max_position_embeddings=context,
        original_max_position_embeddings=until,
        initializer_range=0.5,
        rope_scaling={"type": "longrope", **rope},
    )


def test_texts_that_run_together_are_read_as_if_alone() -> None:
    torch.manual_seed(0)
    config = phi()
    found = Vocabulary(tiny.reader(), limits(16, 32, uniform_length(config)))
    assert (found.context, found.uniform_length) == (32, 8)
    model = TorchModel(Phi3ForSequenceClassification(config).eval())
    short, most, more = Embed((4, 7, 9)), Embed((5,) * 8), Embed((5,) * 9)
    alone, with_most, with_more = (
        torch.tensor(embed(model, tiny.reader(), works)[0].vector)  # type: ignore[union-attr]
        for works in ([short], [short, most], [short, more])
    )
    torch.testing.assert_close(with_most, alone, rtol=1e-4, atol=1e-5)
    assert (with_more - alone).abs().max() > 1e-2
