"""The vision-language model for rendered roads: its recipe, with parts so small that it takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from json_lines import rows
from weightpager_lab.samples.driving_questions import ANSWERS, QUESTIONS, driving_questions
from weightpager_lab.samples.resumable import Stage, Workshop
from weightpager_lab.samples.road_llava import Training, road_llava
from weightpager_lab.samples.road_tower import Seeing
from weightpager_lab.samples.sample import Sample

QUICK = Training(Seeing(steps=3, batch=2), fit_steps=2, steps=3, batch=2, seconds=0.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tower and a language model of two layers each."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tower = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=70, use_mask_token=False
    )
    Dinov2Model(tower).save_pretrained(folder / "tower")
    words = sorted({*" ".join(QUESTIONS.values()).replace("?", " ?").split(), *sum(ANSWERS.values(), ())})
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate([*symbols, "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    assert words
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    language = LlamaConfig(
        vocab_size=len(symbols) + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(language).save_pretrained(folder / "language")
    fast.save_pretrained(folder / "language")
    return folder / "tower", folder / "language"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return driving_questions(tmp_path_factory.mktemp("cache"), train_scenes=6, eval_scenes=3, report=lambda _: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], parts: tuple[Path, Path]) -> Path:
    return build(tmp_path_factory.mktemp("trained"), samples, parts)


def build(
    cache: Path, samples: Sequence[Sample], parts: tuple[Path, Path], report: Callable[[str], None] = lambda _: None
) -> Path:
    tower, language = parts
    return road_llava(cache, samples, training=QUICK, tower=tower, language=language, report=report)


def test_transformers_opens_the_directory(trained: Path, samples: list[Sample]) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    assert model.dtype == torch.bfloat16
    row = rows(samples[0].eval)[0]
    with Image.open(samples[0].eval.parent / row["image"]) as picture:
        inputs = processor(images=picture, text=f"<image>{row['prompt']}", return_tensors="pt")
    places = inputs["input_ids"][0] == model.config.image_token_id
    assert places.sum() == model.config.image_seq_length == 64
    assert places[:64].all()
    assert inputs["input_ids"][0, 64:].tolist() == processor.tokenizer(row["prompt"])["input_ids"]
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    assert torch.isfinite(model(**inputs).logits).all()
    chat = [{"role": "user", "content": [{"type": "text", "text": row["prompt"]}, {"type": "image"}]}]
    assert processor.apply_chat_template(chat) == f"<image>{row['prompt']}"


def test_a_model_is_trained_once(trained: Path, samples: list[Sample], parts: tuple[Path, Path]) -> None:
    made = (trained / "model.safetensors").stat().st_mtime_ns
    assert build(trained.parent.parent, samples, parts) == trained
    assert (trained / "model.safetensors").stat().st_mtime_ns == made
    assert "trained here, on 6 rendered scenes alone" in (trained / "README.md").read_text().replace("\n", " ")
    assert not list((trained.parent.parent / "unfinished").iterdir())


@pytest.mark.parametrize("stage", ["tower: step 2", "connector: step 1", "answers: step 2"])
def test_a_killed_training_goes_on_to_the_same_bits(
    stage: str,
    trained: Path,
    samples: list[Sample],
    parts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, _, at = stage.partition(": step ")
    steps = 0
    train = Workshop.train

    def dies(self: Workshop, of: Stage) -> None:
        def loss(random: torch.Generator) -> torch.Tensor:
            nonlocal steps
            if of.name == name:
                if steps == int(at):
                    raise KeyboardInterrupt
                steps += 1
            return of.loss(random)

        train(self, replace(of, loss=loss))

    with monkeypatch.context() as patched:
        patched.setattr(Workshop, "train", dies)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, samples, parts)
    assert steps == int(at)
    assert not list((tmp_path / "models").glob("road-llava-*"))
    assert_same(build(tmp_path, samples, parts), trained)


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
