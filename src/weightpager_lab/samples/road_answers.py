"""All questions about a picture at once, each computed exactly as if it were asked alone.

Every row of a task is its picture, its prompt and its completion. Seven rows about one picture share their beginning:
here that stands once, and each question sees the picture and itself, from the position where it would stand alone.
So a step teaches seven rows for little more than the price of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from weightpager.compiler.training.device import autocast
from weightpager_lab.samples.driving_questions import ANSWERS, QUESTIONS

_UNANSWERED = -100
_CPU = torch.device("cpu")
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Row:
    """One task's row without its picture: token ids, and what follows each where that belongs to the answer."""

    ids: list[int]
    following: list[int]

    @classmethod
    def of(cls, prompt: list[int], completion: list[int], end: int) -> Row:
        ids = [*prompt, *completion]
        silent = [_UNANSWERED] * (len(prompt) - 1)
        return cls(ids, [*silent, *completion, end])


@dataclass(frozen=True)
class Sheet:
    """Rows about several pictures.

    Attributes:
        ids: [pictures, length] without the pictures' places.
        positions: [pictures, places + length].
        visible: what sees what, bool [pictures, 1, places + length, places + length].
        following: [pictures, length]; −100 where nothing is asked.
        tasks: whose token it is, [pictures, length]; −1 for padding.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    following: Tensor
    tasks: Tensor


class Rows:
    """Every row that a task can have, by the places of its answer."""

    def __init__(self, tokenize: Tokenize, end: int, places: int) -> None:
        """``end`` is the token behind an answer; ``places`` are those of a picture. ``tables`` has a row per answer."""
        self._places = places
        self.tables = [
            [Row.of(tokenize(question), tokenize(f" {answer}"), end) for answer in ANSWERS[task]]
            for task, question in QUESTIONS.items()
        ]

    def sheet(self, answers: Tensor) -> Sheet:
        """The rows of some pictures, by the places of their answers [pictures, tasks]."""
        lines = []
        for of_picture in answers.tolist():
            line = []
            for task, answer in enumerate(of_picture):
                row = self.tables[task][answer]
                line += [
                    (token, self._places + place, following, task)
                    for place, (token, following) in enumerate(zip(row.ids, row.following, strict=True))
                ]
            lines.append(line)
        longest = max(len(line) for line in lines)
        padded = torch.tensor([line + [(0, 0, _UNANSWERED, -1)] * (longest - len(line)) for line in lines])
        ids, positions, following, tasks = padded.unbind(-1)
        picture = torch.arange(self._places).expand(len(lines), -1)
        owners = torch.cat([torch.full_like(picture, len(QUESTIONS)), tasks], 1)  # a picture's places are everybody's
        positions = torch.cat([picture, positions], 1)
        before = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
        shown = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == len(QUESTIONS))
        return Sheet(ids, positions, (shown & before)[:, None], following, tasks)


def logits_of(model: LlavaForConditionalGeneration, features: Tensor, sheet: Sheet) -> Tensor:
    """Float32 [asked, vocabulary]: at the places whose following token belongs to an answer."""
    with autocast(_CPU):
        pictures = model.model.multi_modal_projector(features.to(model.lm_head.weight.dtype))
        words = model.get_input_embeddings()(sheet.ids).to(pictures.dtype)
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([pictures, words], 1),
            attention_mask=sheet.visible,
            position_ids=sheet.positions,
            use_cache=False,
        ).last_hidden_state
        asked = hidden[:, pictures.shape[1] :][sheet.following != _UNANSWERED]
        logits: Tensor = model.lm_head(asked).float()
    return logits


def answers_loss(model: LlavaForConditionalGeneration, features: Tensor, sheet: Sheet) -> Tensor:
    return cross_entropy(logits_of(model, features, sheet), sheet.following[sheet.following != _UNANSWERED])


def right_answers(model: LlavaForConditionalGeneration, rows: Rows, features: Tensor, answers: Tensor) -> Tensor:
    """Whether the greedy answer is the wanted one to the letter and ends behind it, bool [pictures, tasks].

    All tokens of the wanted answer being the likeliest, each behind those before it, is the same.
    """
    found = []
    for some, wanted in zip(torch.split(features, 16), torch.split(answers, 16), strict=True):
        sheet = rows.sheet(wanted)
        asked = sheet.following != _UNANSWERED
        with torch.inference_mode():
            wrong = logits_of(model, some, sheet).argmax(-1) != sheet.following[asked]
        pictures, places = asked.nonzero(as_tuple=True)
        misses = torch.zeros(len(some), len(QUESTIONS), dtype=torch.long)
        misses.index_put_((pictures, sheet.tasks[pictures, places]), wrong.long(), accumulate=True)
        found.append(misses == 0)
    return torch.cat(found)


def plain_ids(tokenizer: Any) -> Tokenize:
    """Ids of a text by itself, as the tasks' rows are read."""
    return lambda text: list(tokenizer(text, add_special_tokens=False).input_ids)
