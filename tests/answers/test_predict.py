"""What a task's module is asked, and what it answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import tiny
import weightpager as wp
from running import serving
from weightpager.answers.kinds import kind_of
from weightpager.answers.predict import Wanted, predict
from weightpager.answers.query import padded
from weightpager.answers.work import Classify
from weightpager.backends.torch.architecture import context_length, empty_module
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle import Generation, TaskEntry
from weightpager.errors import ConfigError, ImageError
from weightpager.kernels.choice import NATIVE
from weightpager.readers.tokenizer import ANY_LENGTH, Tokenizer, open_tokenizer


@pytest.mark.parametrize("said", [None, 12])
def test_no_more_is_generated_than_model_and_tokenizer_can_read(writer_bundle: Path, said: int | None) -> None:
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        module, tokenizer = engine.activate("numbers"), open_tokenizer(engine.bundle)
        model = engine.model("numbers")
        tokenizer.longest = said or ANY_LENGTH
        most = said or module.config.max_position_embeddings
        task, prompt = engine.bundle.task("numbers"), "one two"
        assert predict(model, tokenizer, task, [prompt], wanted=Wanted(most - 3))  # and one that begins a text
        with pytest.raises(ConfigError, match=f"at most {most} tokens, as the model can read, found 3 and {most - 2}"):
            predict(model, tokenizer, task, [prompt], wanted=Wanted(most - 2))
        with pytest.raises(ConfigError, match="text 2 of 3: expected at least one token, found none"):
            predict(model, tokenizer, task, [prompt, "", prompt])


BACKENDS = pytest.mark.parametrize(
    "backend",
    ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the native kernels are not built"))],
)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("one two", r"expected a list, such as \['one two'\], found 'one two' alone"),
        (b"one", r"expected a list, such as \[b'one'\], found b'one' alone"),
        (None, "expected a list of texts or images, found nothing"),
        (3, "expected a list of texts or images, found 3"),
        ({"text": "one"}, "expected a list of texts or images, found {'text': 'one'}"),
        (["one", None], "expected texts in Unicode, found nothing at 2 of 2"),
        ([b"one"], "expected texts in Unicode, found b'one' at 1 of 1"),
        (["\udcff"], r"expected texts in Unicode, found '\\udcff' at 1 of 1"),
    ],
)
def test_anything_but_several_texts_is_refused(writer_bundle: Path, inputs: Any, words: str) -> None:
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        for ask in (engine.predict, engine.embed):
            with pytest.raises(ConfigError, match=words):
                ask("numbers", inputs)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("most", [0, -1])
def test_a_continuation_of_no_tokens_is_refused(writer_bundle: Path, backend: str, most: int) -> None:
    if backend == "native" and not NATIVE:
        pytest.skip("the native kernels are not built")
    words = f"max_new_tokens: expected at least 1, found {most}"
    with wp.Engine.from_pretrained(writer_bundle, backend=backend) as engine, pytest.raises(ConfigError, match=words):
        engine.predict("numbers", ["one two"], max_new_tokens=most)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature: expected a number from 0 to 2, found -0.1"),
        ({"temperature": math.nan}, "temperature: expected a number from 0 to 2, found nan"),
        ({"top_p": 0}, "top_p: expected a number above 0 and up to 1, found 0"),
        ({"seed": 2**63}, "seed: expected a whole number of 64 bits, found 9223372036854775808"),
        ({"stop": ["one", ""]}, "stop: expected texts that aren't empty, found ''"),
        ({"stop": [3]}, "stop: expected texts that aren't empty, found 3"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"batch_size": "8"}, "batch_size: expected a whole number, found '8'"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number, found 1.5"),
        ({"batch_size": None}, "batch_size: expected a whole number, found nothing"),
        ({"batch_size": True}, "batch_size: expected a whole number, found True"),
        ({"max_new_tokens": "3"}, "max_new_tokens: expected a whole number, found '3'"),
        ({"max_new_tokens": np.bool_(True)}, "max_new_tokens: expected a whole number, found "),
        ({"temperature": "hot"}, "temperature: expected a number from 0 to 2, found 'hot'"),
        ({"temperature": True}, "temperature: expected a number from 0 to 2, found True"),
        ({"top_p": "0.5"}, "top_p: expected a number above 0 and up to 1, found '0.5'"),
        ({"seed": 1.5}, "seed: expected a whole number of 64 bits, found 1.5"),
        ({"seed": "1"}, "seed: expected a whole number of 64 bits, found '1'"),
        ({"stop": 3}, "stop: expected a text or a list of texts, found 3"),
        ({"stop": b"one"}, "stop: expected a text or a list of texts, found b'one'"),
    ],
)
def test_options_out_of_their_range_are_refused(writer_bundle: Path, options: dict[str, Any], words: str) -> None:
    with wp.load(writer_bundle) as engine:
        with pytest.raises(ConfigError, match=words):
            engine.predict("numbers", ["one"], **options)
        if "batch_size" not in options:
            with pytest.raises(ConfigError, match=words):
                engine.stream("numbers", "one", **options)


@BACKENDS
def test_options_may_be_numbers_of_numpy_and_none(writer_bundle: Path, backend: str) -> None:
    plain: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.5, "top_p": 0.5, "seed": 7}
    given: dict[str, Any] = {"max_new_tokens": np.int64(3), "temperature": np.float32(1.5), "top_p": np.float64(0.5)}
    given["seed"] = np.uint8(7)
    with wp.load(writer_bundle, backend=backend) as engine:
        expected = engine.predict("numbers", ["one"], **plain)
        assert engine.predict("numbers", ["one"], **given, batch_size=np.int32(1), stop=None) == expected
        assert "".join(engine.stream("numbers", "one", **given, stop=None)) == expected[0].completion


@BACKENDS
def test_a_batch_is_answered_as_each_alone(assistant_bundle: Path, camera_bundle: Path, backend: str) -> None:
    words = ["red", "cat", "dog", "sun", "one", "two", "snow"]
    texts = [" ".join(words[: 1 + number % 7] * (1 + number // 7)) for number in range(28)]
    with wp.load(assistant_bundle, backend=backend) as engine:
        for task in ("weather", "colour"):
            alone, together = engine.predict(task, texts), engine.predict(task, texts, batch_size=8)
            assert [replace(each, score=None) for each in together] == [replace(each, score=None) for each in alone]
            scores = [(one.score or 0, other.score or 0) for one, other in zip(alone, together, strict=True)]
            assert all(one == pytest.approx(other, abs=1e-4) for one, other in scores)
    frames = [np.full((16, 16, 3), colour, np.uint8) for colour in range(0, 250, 40)]
    with wp.load(camera_bundle, backend=backend) as engine:
        alone, together = engine.predict("bright", frames), engine.predict("bright", frames, batch_size=3)
        assert [each.label for each in together] == [each.label for each in alone]


@BACKENDS
def test_prompts_of_a_batch_are_continued_as_each_alone(writer_bundle: Path, backend: str) -> None:
    prompts = ["one two", "two", "cat cow dog one", "sun", "red red"]
    with wp.load(writer_bundle, backend=backend) as engine:
        alone = engine.predict("numbers", prompts, max_new_tokens=6)
        assert engine.predict("numbers", prompts, max_new_tokens=6, batch_size=3) == alone
        one = engine.predict("numbers", prompts, temperature=1.5, seed=5)
        assert engine.predict("numbers", prompts, temperature=1.5, seed=5, batch_size=3) == one
        assert engine.predict("numbers", prompts, temperature=1.5, seed=6) != one


@BACKENDS
def test_tokens_are_drawn_as_the_server_draws_them(writer_bundle: Path, backend: str) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "seed": 7, "stop": ["cow", "dog"]}
    with serving(writer_bundle, backend=backend) as running:
        asked = running.openai.completions.create(model="numbers", prompt="one two", max_tokens=20, **options)
    with wp.load(writer_bundle, backend=backend) as engine:
        (found,) = engine.predict("numbers", ["one two"], max_new_tokens=20, **options)
        pieces = list(engine.stream("numbers", "one two", max_new_tokens=20, **options))
    assert found.completion == "".join(pieces) == asked.choices[0].text


@BACKENDS
def test_vectors_are_those_of_the_server(assistant_bundle: Path, backend: str) -> None:
    texts = ["red cat rain", "sun", "one two three four"]
    with serving(assistant_bundle, backend=backend) as running:
        asked = running.openai.embeddings.create(model="weather", input=texts, encoding_format="float")
    with wp.load(assistant_bundle, backend=backend) as engine:
        found, batch = engine.embed("weather", texts), engine.embed("weather", texts, batch_size=8)
        assert engine.embed("weather", []).shape == (0, 0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [each.embedding for each in asked.data], atol=1e-5)
    np.testing.assert_allclose(batch, found, atol=1e-5)


def test_a_text_that_is_too_long_for_one_forward_has_a_vector(writer_bundle: Path) -> None:
    text = "one two cat " * 20
    with wp.load(writer_bundle) as engine, pytest.MonkeyPatch.context() as patch:
        whole = engine.embed("numbers", [text])
        patch.setattr("weightpager.answers.model.FORWARD_TOKENS", 16)
        np.testing.assert_allclose(engine.embed("numbers", [text, "one"])[:1], whole, atol=1e-5)
        with pytest.raises(ConfigError, match="text 2 of 2: expected at most 128 tokens, as the model can read, found"):
            engine.embed("numbers", ["one", text * 3])


def test_images_have_no_vectors(camera_bundle: Path) -> None:
    with (
        wp.load(camera_bundle) as engine,
        pytest.raises(ConfigError, match="expected a task that reads texts, found 'warm' of image-classification"),
    ):
        engine.embed("warm", ["a.png"])


def test_what_is_refused_costs_no_switch(writer_bundle: Path) -> None:
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        engine.activate("animals")
        before = len(engine.report().switches)
        with pytest.raises(ConfigError, match="max_new_tokens"):
            engine.predict("numbers", ["one two"], max_new_tokens=0)
        with pytest.raises(ConfigError, match="inputs"):
            engine.predict("numbers", "one two")
        assert len(engine.report().switches) == before


def test_inputs_may_come_one_by_one(writer_bundle: Path) -> None:
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        assert engine.predict("numbers", iter(["one", "two"])) == engine.predict("numbers", ["one", "two"])


def test_one_image_alone_is_refused(camera_bundle: Path) -> None:
    with wp.Engine.from_pretrained(camera_bundle) as engine:
        with pytest.raises(ConfigError, match="expected a list, such as .'a.png'., found 'a.png' alone"):
            engine.predict("warm", "a.png")
        for alone in (Path("a.png"), b"\x89PNG", np.zeros((8, 8, 3), np.uint8)):
            with pytest.raises(ConfigError, match="expected a list"):
                engine.predict("warm", alone)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="expected images: paths, bytes or frames, found 3 at 1 of 1"):
            engine.predict("warm", [3])  # type: ignore[list-item]


def test_an_image_may_be_a_path_a_files_content_or_a_frame(camera_bundle: Path, tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    file = tmp_path / "frame.png"
    Image.fromarray(frame).save(file)
    with wp.Engine.from_pretrained(camera_bundle) as engine:
        mirrored = np.ascontiguousarray(frame[..., ::-1])[..., ::-1]  # as a camera in BGR gives it
        found = engine.predict("warm", [str(file), file, file.read_bytes(), frame, mirrored])
    assert [prediction.text for prediction in found] == [str(file), str(file), "", "", ""]
    assert len({(prediction.label, prediction.score) for prediction in found}) == 1


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8 \[height, width, 3\] in RGB, found uint8 \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"found uint8 \[8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.float32), r"found float32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "found 8 × 0"),
        (np.zeros((1, 64, 3), np.uint8), "sides of at most 1 : 32, found 64 × 1"),
        (b"no image", "expected an image"),
    ],
)
def test_an_image_without_a_path_is_named_by_its_number(camera_bundle: Path, frame: Any, words: str) -> None:
    sound = np.zeros((8, 8, 3), np.uint8)
    with (
        wp.Engine.from_pretrained(camera_bundle) as engine,
        pytest.raises(ImageError, match=f"image 2 of 3: .*{words}"),
    ):
        engine.predict("warm", [sound, frame, sound])


def writer(form: Literal["plain", "chat"], reader: Tokenizer) -> tuple[TorchModel, Tokenizer, TaskEntry]:
    """A model that has learnt nothing, with a tokenizer, and a task of text generation for it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, eos_token_id=3, pad_token_id=0)).eval()
    generation = Generation(prompts=form, max_new_tokens=4, metrics=["chrf"])
    entry = {"sparsity": 0.5, "dense": None, "eval": None, "max_length": 8, "generation": generation}
    task = TaskEntry(name="a", kind="text-generation", classes=[], **entry)  # type: ignore[arg-type]
    return TorchModel(llama), reader, task


def test_a_generated_text_is_whole_and_the_one_that_eval_compares() -> None:
    model, reader, task = writer("plain", tiny.reader())
    found = [prediction.label for prediction in predict(model, reader, task, ["red", "cat dog"])]
    batch = padded([reader.encode(text, special=False).ids for text in ("red", "cat dog")], 0, left=True)
    assert kind_of(task.kind).answering(model, reader, task.generation)(batch) == found
    assert all(text.startswith(" ") for text in found)


def test_a_conversation_is_read_as_its_template_writes_it() -> None:
    own = tiny.tokenizer()
    own.chat_template = tiny.TEMPLATE
    reader = tiny.reader(own)
    system, user = {"role": "system", "content": "green"}, {"role": "user", "content": "red"}
    found, alone, text = predict(*writer("chat", reader), [[system, user], [user], "red"])
    (written,) = predict(*writer("plain", reader), ["green red snow"])
    assert (found.text, found.label) == ("red", written.label)
    assert alone == text
    assert alone.label != found.label


@pytest.mark.parametrize(
    ("form", "given", "words"),
    [
        ("plain", [[{"role": "user", "content": "red"}]], "expected texts in Unicode, found "),
        ("chat", [{"role": "user", "content": "red"}], "expected texts in Unicode or lists of messages, found "),
        ("chat", ["red", []], r"expected a list of messages, found \[\] at 2 of 2"),
        ("chat", [[{"role": "tool", "content": "red"}]], "expected a role of system, developer, user, assistant"),
        ("chat", [[{"role": "user"}]], "expected messages with a role and a content that is text"),
        ("chat", [[{"role": "user", "content": "\udcff"}]], "expected messages in Unicode, found .* at 1 of 1"),
    ],
)
def test_other_conversations_are_refused(form: Literal["plain", "chat"], given: list[Any], words: str) -> None:
    model, reader, task = writer(form, tiny.reader())
    with pytest.raises(ConfigError, match=f"inputs: {words}"):
        predict(model, reader, task, given)


def test_positions_behind_the_padding_are_not_read() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=len(tiny.WORDS), max_position_embeddings=12, pad_token_id=0)
    module = RobertaModel(config)
    most = context_length(module)
    assert most == 11
    module(torch.full((1, most), 4))
    with pytest.raises((IndexError, RuntimeError)):
        module(torch.full((1, most + 1), 4))


def test_a_text_has_one_class_whatever_the_models_directory_was_trained_for() -> None:
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, problem_type="multi_label_classification")
    entry = {"sparsity": 0.5, "dense": None, "eval": None, "max_length": 8}
    task = TaskEntry(name="a", kind="text-classification", classes=["b", "c"], **entry)  # type: ignore[arg-type]
    assert empty_module(config, task).config.problem_type is None  # else transformers' pipeline answers with sigmoids


def test_token_types_are_not_taken_from_a_tokenizer() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:1 $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert tokenizer("red")["token_type_ids"] == [1, 1, 1]
    reader = tiny.reader(tokenizer)
    torch.manual_seed(0)
    bert = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, initializer_range=0.5)).eval()
    entry = {"sparsity": 0.5, "dense": None, "eval": None, "max_length": 8}
    task = TaskEntry(name="a", kind="text-classification", classes=["b", "c"], **entry)  # type: ignore[arg-type]
    served = kind_of("text-classification").encode(TorchModel(bert), reader, [Classify((2, 4, 3))])[0]
    found = predict(TorchModel(bert), reader, task, ["red"])[0]
    assert found.score == pytest.approx(max(served.probabilities), abs=1e-6)  # type: ignore[union-attr]
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, eos_token_id=3, pad_token_id=0)).eval()
    writing = TaskEntry(name="a", kind="language-modeling", classes=[], **entry)  # type: ignore[arg-type]
    assert predict(TorchModel(llama), reader, writing, ["red"], wanted=Wanted(2))
