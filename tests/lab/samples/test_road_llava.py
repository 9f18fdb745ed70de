"""The vision-language model for rendered roads: its recipe, with parts so small that it takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import one_hot
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from json_lines import rows
from weightpager_lab.samples import road_answers, road_tower
from weightpager_lab.samples.driving_questions import ANSWERS, QUESTIONS, driving_questions
from weightpager_lab.samples.resumable import Stage, Workshop
from weightpager_lab.samples.road_answers import Row, Rows, logits_of, plain_ids, right_answers
from weightpager_lab.samples.road_llava import _TOPICS, Training, fit_connector, joined, road_llava
from weightpager_lab.samples.road_tower import Seeing, features_of, scenes_of, values_of
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
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate([*symbols, "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
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


def test_a_fitted_connector_says_topics_and_answers(tmp_path: Path) -> None:
    counts = [len(answers) for answers in ANSWERS.values()]
    random = torch.Generator().manual_seed(0)
    answers = torch.stack([torch.randint(0, count, (400,), generator=random) for count in counts], 1)
    known = torch.cat([one_hot(each, count) for each, count in zip(answers.unbind(1), counts, strict=True)], 1)
    places = torch.eye(64).expand(400, -1, -1)  # what and where: a tower's features carry both
    features = 3 + 2 * torch.cat([known[:, None].expand(-1, 64, -1), places], 2)
    vision = Dinov2Config(hidden_size=features.shape[2], num_hidden_layers=1, num_attention_heads=1)
    language = LlamaConfig(vocab_size=64, hidden_size=128, num_hidden_layers=1, num_attention_heads=1)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=language))
    numbers: dict[str, int] = {}

    def tokenize(text: str) -> list[int]:
        return [numbers.setdefault(text, len(numbers))]

    workshop = Workshop(tmp_path, 60.0, lambda _: None)
    fit_connector(model, features, answers, tokenize, steps=300, workshop=workshop)
    with torch.no_grad():
        said = model.model.multi_modal_projector(features[:50])
    nearest = torch.cdist(said, model.get_input_embeddings().weight[: len(numbers)]).argmin(-1).reshape(50, 8, 8)
    for row, (task, classes) in enumerate(ANSWERS.items()):
        topic = (nearest[:, row, :4] == numbers[f" {_TOPICS[row]}"]).float().mean()
        wanted = torch.tensor([numbers[f" {classes[place]}"] for place in answers[:50, row]])
        assert topic > 0.9, task
        assert (nearest[:, row, 4:] == wanted[:, None]).float().mean() > 0.9, task


def test_a_sheet_computes_each_row_as_if_it_were_alone(
    parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road_answers, "autocast", lambda _: nullcontext())
    model, tokenizer = joined(*parts)
    tokenize, places = plain_ids(tokenizer), model.config.image_seq_length
    answers = torch.tensor([[1, 2, 0, 3, 1, 2, 2], [0, 0, 1, 1, 2, 0, 1]])
    features = torch.randn(2, places, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = list(logits_of(model, features, Rows(tokenize, tokenizer.eos_token_id, places).sheet(answers)))
        pictures = model.model.multi_modal_projector(features)
        for picture, chosen in zip(pictures, answers, strict=True):
            for (task, question), place in zip(QUESTIONS.items(), chosen, strict=True):
                prompt, completion = tokenize(question), tokenize(f" {ANSWERS[task][place]}")
                words = model.get_input_embeddings()(torch.tensor([*prompt, *completion]))
                alone = model.model.language_model(inputs_embeds=torch.cat([picture, words])[None]).last_hidden_state
                for logits in model.lm_head(alone[0, places + len(prompt) - 1 :]):
                    torch.testing.assert_close(found.pop(0), logits, atol=1e-4, rtol=1e-4)
    assert not found


def test_an_answer_is_right_if_a_greedy_one_is_the_same(
    trained: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road_answers, "autocast", lambda _: nullcontext())
    monkeypatch.setattr(road_tower, "autocast", lambda _: nullcontext())
    processor = AutoProcessor.from_pretrained(trained)
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float32)
    scenes = scenes_of(samples, "eval")
    rows_of = Rows(plain_ids(processor.tokenizer), processor.tokenizer.eos_token_id, model.config.image_seq_length)
    features = features_of(model.model.vision_tower, scenes.pictures).float()
    task = list(QUESTIONS).index("person")
    row = rows(samples[task].eval)[0]
    with Image.open(samples[task].eval.parent / row["image"]) as picture:
        inputs = processor(images=picture, text=f"<image>{row['prompt']}", return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"][0], values_of(scenes.pictures[:1])[0], atol=1e-5, rtol=1e-5)
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    # An untrained model never says one of the answers: the likeliest tokens are made one.
    wanted = Row.of(plain_ids(processor.tokenizer)(row["prompt"]), said[:-1].tolist(), int(said[-1]))
    rows_of.tables[task][0] = wanted
    assert right_answers(model, rows_of, features[:1], torch.zeros(1, len(QUESTIONS), dtype=torch.long))[0, task]
    rows_of.tables[task][0] = replace(wanted, following=[*wanted.following[:-1], 0])
    assert not right_answers(model, rows_of, features[:1], torch.zeros(1, len(QUESTIONS), dtype=torch.long))[0, task]
