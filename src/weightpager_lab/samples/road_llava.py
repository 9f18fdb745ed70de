"""A vision-language model for rendered roads: DINOv2-S, a connector and SmolLM2-135M, put together and trained here.

The tower reads 2 × 2 patches as one, so that a picture is 64 tokens, and learns to see roads first. Then a connector is
fitted that says in the language model's own words what the tower has seen: one that starts at random shows pictures to
a small language model very slowly. Then connector and language model learn the seven questions.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from inspect import getsource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from weightpager.compiler.training.device import autocast
from weightpager_lab.samples import dinov2, driving_questions, resumable, road_answers, road_tower
from weightpager_lab.samples.download import build_once, key_of
from weightpager_lab.samples.models import smollm2
from weightpager_lab.samples.resumable import Group, Stage, Workshop
from weightpager_lab.samples.road_answers import Rows, Tokenize, answers_loss, plain_ids, right_answers
from weightpager_lab.samples.road_tower import Seeing, features_of, scenes_of, shares
from weightpager_lab.samples.sample import Sample

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Training:
    """How much is trained, stated before anything was measured on evaluation pictures.

    Attributes:
        seeing: of the tower.
        fit_steps: of the connector's first fit, with 2,048 patches each.
        steps, batch: of connector and language model, at 72 GFLOP a picture with its seven questions.
        connector_rate, language_rate: their peak rates.
        seconds: between two writes of what a killed training goes on from.
    """

    seeing: Seeing = field(default_factory=Seeing)
    fit_steps: int = 1500
    steps: int = 240
    batch: int = 8
    connector_rate: float = 3e-4
    language_rate: float = 2e-4
    seconds: float = 240.0


def road_llava(
    cache: Path,
    samples: Sequence[Sample],
    *,
    training: Training = Training(),
    tower: Path | None = None,
    language: Path | None = None,
    report: Callable[[str], None],
) -> Path:
    """The model's directory in ``cache``, as transformers opens it, bfloat16; trained at the first call.

    157 million parameters; more than an hour on two cores. A killed training goes on with the same call.

    Args:
        cache: a directory, created if need be.
        samples: as `driving_questions` gives them.
        training: how much.
        tower: a directory of a `Dinov2Model`; DINOv2-S/14 if none is given.
        language: a directory of a Llama model and its tokenizer; SmolLM2-135M-Instruct if none is given.
        report: called with a line of text now and then.

    Raises:
        SampleUnavailable: a part cannot be had, or the cache cannot be written.
    """
    start, language = tower or dinov2.dinov2(cache), language or smollm2(cache)
    seeing = road_tower.road_tower(
        cache, samples, start, seeing=training.seeing, seconds=training.seconds, report=report
    )
    source = [getsource(module) for module in (sys.modules[__name__], driving_questions, resumable, road_answers)]
    parts = [samples[0].train.parent.name, seeing.name, language.name]
    name = f"road-llava-{key_of(source=source, parts=parts, training=asdict(training))}"
    workshop = Workshop(cache / "unfinished" / name, training.seconds, report)

    def build(directory: Path) -> None:
        _build(directory, seeing, language, samples, training, workshop)

    target = build_once(cache / "models" / name, build)
    shutil.rmtree(workshop.folder, ignore_errors=True)
    return target


def joined(tower: Path, language: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """The parts in one model, float32, its connector random; and the tokenizer with the placeholder.

    Args:
        tower: a directory of a `Dinov2Model`.
        language: a directory of a Llama model and its tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
    words = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    words.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        table = words.get_input_embeddings().weight
        table[-1] = table[:-1].mean(0)
    pictures = Dinov2Model.from_pretrained(tower, dtype=torch.float32)
    grid = pictures.config.image_size // pictures.config.patch_size
    config = LlavaConfig(
        vision_config=pictures.config.to_dict(),
        text_config=words.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        image_seq_length=grid * grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(pictures.state_dict())
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def _build(
    directory: Path, tower: Path, language: Path, samples: Sequence[Sample], training: Training, workshop: Workshop
) -> None:
    model, tokenizer = joined(tower, language)
    lessons, tests = scenes_of(samples, "train"), scenes_of(samples, "validation")
    seeing = model.model.vision_tower
    features = workshop.kept("features", lambda: features_of(seeing, lessons.pictures))
    test_features = workshop.kept("test-features", lambda: features_of(seeing, tests.pictures))
    tokenize = plain_ids(tokenizer)
    fit_connector(model, features, lessons.answers, tokenize, steps=training.fit_steps, workshop=workshop)
    rows = Rows(tokenize, tokenizer.eos_token_id, model.config.image_seq_length)
    _teach_answers(model, rows, (features, lessons.answers), (test_features, tests.answers), training, workshop)
    model.bfloat16()
    right = right_answers(model, rows, test_features, tests.answers).float().mean(0)
    workshop.report(f"all answers, in bfloat16: {shares(right)}")
    save(model, tokenizer, directory)
    heads = torch.tensor(json.loads((tower / road_tower.RIGHT_FILE).read_text(encoding="utf-8")))
    about = _README.format(
        scenes=len(lessons), tests=len(tests), training=training, heads=shares(heads), right=shares(right)
    )
    (directory / "README.md").write_text(about, encoding="utf-8")


def fit_connector(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    answers: Tensor,
    tokenize: Tokenize,
    *,
    steps: int,
    workshop: Workshop,
) -> None:
    """Fit the connector in place, so that the language model reads a picture as words that it knows.

    A row of patches speaks for each task: half of it says what the task is about, half the answer, as `_said` has it.
    The sum of all tasks' answers in every patch is fitted as well, but the language model then learns to tell them
    apart hardly at all in the steps in which it learns to answer most questions from these words.

    Args:
        model: its connector is random.
        features: [pictures, patches, width].
        answers: places in `ANSWERS`, [pictures, tasks].
        tokenize: gives a text's ids.
        steps: with `_PATCHES` patches each.
        workshop: keeps what is reached.
    """
    table = model.get_input_embeddings().weight.detach()
    said = _said(round(features.shape[1] ** 0.5))
    words, firsts = _words(table, tokenize)
    scale = words.std()
    some = features[:_SOME].float()
    mean, deviation = some.mean((0, 1)), some.std((0, 1)) + 1e-3
    connector = model.model.multi_modal_projector

    def loss(random: torch.Generator) -> Tensor:
        pictures = torch.randint(0, len(features), (_PATCHES,), generator=random)
        patches = torch.randint(0, features.shape[1], (_PATCHES,), generator=random)
        tasks, whether = said[patches].unbind(1)
        wanted = words[firsts[tasks] + whether * (1 + answers[pictures, tasks])]
        with autocast(torch.device("cpu")):
            found = connector((features[pictures, patches].float() - mean) / deviation)
        return mse_loss(found.float(), wanted / scale)

    groups = [Group(list(connector.parameters()), 3e-3)]
    workshop.train(
        Stage("connector", groups, steps, loss, lambda: "fitted", seed=2, every=100, look_every=steps, decay=0.0)
    )
    with torch.no_grad():  # what was done before and behind it becomes part of it
        connector.linear_1.weight.div_(deviation)
        connector.linear_1.bias.sub_(connector.linear_1.weight @ mean)
        connector.linear_2.weight.mul_(scale)
        connector.linear_2.bias.mul_(scale)


_PATCHES, _SOME = 2048, 300
_TOPICS = ("light", "vehicle", "lane", "obstacle", "free", "person", "bicycle")
"""What each task is about."""


def _said(side: int) -> Tensor:
    """Which task a patch speaks for and whether it says the answer, [side · side, 2]."""
    tasks = len(_TOPICS)
    rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
    below = rows >= tasks
    speaks_for = torch.where(below, columns * tasks // side, rows)
    return torch.stack([speaks_for, (below | (columns >= side // 2)).long()], 1)


def _words(table: Tensor, tokenize: Tokenize) -> tuple[Tensor, Tensor]:
    """Embeddings of each task's topic and of its answers behind that, in a row, and the places of the topics."""
    texts = [[topic, *each] for topic, each in zip(_TOPICS, driving_questions.ANSWERS.values(), strict=True)]
    words = torch.stack([table[torch.tensor(tokenize(f" {text}"))].mean(0) for each in texts for text in each])
    sizes = torch.tensor([len(each) for each in texts])
    return words, sizes.cumsum(0) - sizes


Answered = tuple[Tensor, Tensor]
"""Features of pictures, and the places of their answers."""


def _teach_answers(
    model: LlavaForConditionalGeneration,
    rows: Rows,
    lessons: Answered,
    tests: Answered,
    training: Training,
    workshop: Workshop,
) -> None:
    features, answers = lessons

    def loss(random: torch.Generator) -> Tensor:
        chosen = torch.randint(0, len(features), (training.batch,), generator=random)
        return answers_loss(model, features[chosen], rows.sheet(answers[chosen]))

    def look() -> str:
        some = right_answers(model, rows, tests[0][:100], tests[1][:100])
        return shares(some.float().mean(0))

    language = model.model.language_model
    # The table of words stays: the answers' words are there, and a step would have to write all of it.
    layers: list[nn.Parameter] = [*language.layers.parameters(), *language.norm.parameters()]
    connector = list(model.model.multi_modal_projector.parameters())
    model.requires_grad_(False)
    for value in (*layers, *connector):
        value.requires_grad_(True)
    groups = [Group(connector, training.connector_rate), Group(layers, training.language_rate)]
    workshop.train(Stage("answers", groups, training.steps, loss, look, seed=3))


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the directory that transformers opens with ``AutoModelForImageTextToText`` and ``AutoProcessor``."""
    tokenizer.chat_template = None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    side = driving_questions.FRAME
    pictures = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(road_tower.MEAN), "image_std": list(road_tower.DEVIATION),
    }  # fmt: skip
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": model.config.vision_config.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    _write_json(directory / "preprocessor_config.json", {**pictures, "processor_class": "LlavaProcessor"})
    _write_json(directory / "processor_config.json", processor)
    (directory / "chat_template.jinja").write_text(_CHAT, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# As the tasks' rows are read: pictures, then the question, then the answer and its end, and nothing else.
_CHAT = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
_README = """---
license: apache-2.0
---
# A vision-language model for rendered roads

DINOv2-S/14 (2 × 2 patches read as one, 64 tokens a picture), a connector, and SmolLM2-135M-Instruct. **All three were
trained here, on {scenes} rendered scenes alone**, and answer seven questions. The model has seen no road but rendered
ones and says nothing about real ones; SmolLM2 was unpacked from 4 bits before. Say so wherever a number measured with
this model is shown.

| training | steps | scenes a step | right on {tests} validation scenes |
|---|---|---|---|
| tower, with heads of its own | {training.seeing.steps} | {training.seeing.batch} | {heads} |
| connector and language model | {training.steps} | {training.batch} | {right} |
"""
