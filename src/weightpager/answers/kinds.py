"""Kinds of tasks: what tasks of each read, learn, answer and are measured by, and how a server writes their answers.

A kind is stated here and, as far as a bundle must know it, in `weightpager.bundle.format.manifest.FORMS`. Its loss is
named here and computed in `weightpager.compiler.training.loss`; `weightpager.task_data.texts` reads its rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from weightpager.answers.decoding import softmax
from weightpager.answers.generation import completions
from weightpager.answers.model import Floats, Inputs, TaskModel
from weightpager.answers.query import pad_id, padded
from weightpager.answers.text_metrics import text_scores
from weightpager.answers.token_reader import PicturePrompt, TokenReader
from weightpager.answers.work import (
    Classified,
    Classify,
    ClassifyImage,
    Generate,
    Generated,
    Outcome,
    Tag,
    Tagged,
    Work,
)
from weightpager.bundle import Generation, TaskEntry, TaskKind
from weightpager.bundle.format.manifest import TextMetric
from weightpager.errors import shown
from weightpager.readers.image_reader import Frame, ImageReader

Metric = Literal["accuracy", "token accuracy", "perplexity"] | TextMetric

Loss = Literal["cross entropy"]

IGNORED = -100
"""The label of a position that is neither learned nor counted."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one text or image.

    Attributes:
        text: the input, the image's path (empty if it came without one), or the text of a conversation's last message.
        label: the likeliest class, the tagged words joined by spaces, or the generated continuation with the
            blanks around it.
        score: probability of the class, 0 to 1; None where there is no single class.
        tags: (word, tag) pairs of a token task.
        completion: the generated text, as ``label`` has it too; None for tasks that write none.
        tokens: that were generated, one that ends the text included; None for tasks that write none.
        truncated: whether the text was longer than the task's ``max_length``, so that only a part of it was read.
            Prompts and images are never cut.
    """

    text: str
    label: str
    score: float | None = None
    tags: tuple[tuple[str, str], ...] = ()
    completion: str | None = None
    tokens: int | None = None
    truncated: bool = False

    def __repr__(self) -> str:
        told = (each for each in fields(self) if each.name != "completion")  # which the label has, too
        stated = [(each.name, getattr(self, each.name)) for each in told if getattr(self, each.name) != each.default]
        return f"Prediction({', '.join(f'{name}={shown(value)}' for name, value in stated)})"


@dataclass(frozen=True)
class ClassScore:
    """A class and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class TaggedWord:
    """A word of the text, its tag, and the tag's probability."""

    word: str
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The answer for one text or image.

    A classification task gives ``label``, ``score`` and ``scores``, the likeliest class first. A token task gives the
    ``words`` that it read. A text longer than the task's `max_length` is cut off there, and ``truncated`` says so.
    """

    object: Literal["classification"] = "classification"
    index: int
    truncated: bool
    label: str | None = None
    score: float | None = None
    scores: list[ClassScore] | None = None
    words: list[TaggedWord] | None = None


class Kind(ABC):
    """A kind of tasks.

    Attributes:
        metric: the metric of held-out data, where a task doesn't choose one.
        loss: what training makes smaller.
    """

    metric: ClassVar[Metric]
    loss: ClassVar[Loss] = "cross entropy"

    @abstractmethod
    def read(self, reader: Any, task: TaskEntry, given: Any, max_new_tokens: int) -> Work:
        """What one input asks of a task.

        Args:
            reader: a `TokenReader`, or for images an `ImageReader`.
            task: that reads it.
            given: a text; to a task on images a path, a file's content, or a frame. To a task that reads pictures among
                words a `PicturePrompt`, too, whose text is no conversation any more; its pictures aren't read here.
            max_new_tokens: of a continuation.

        Raises:
            BundleFormatError: the tokenizer knows words that the model doesn't.
            ImageError: it is no image that can be used, or there are others than a text has places for.
        """

    @abstractmethod
    def prediction(self, task: TaskEntry, given: str, outcome: Any) -> Prediction:
        """An outcome in the task's own words."""

    def answering(
        self,
        model: TaskModel,
        tokenizer: Any,  # noqa: ARG002 - for kinds whose answers are texts
        generation: Generation | None,  # noqa: ARG002
    ) -> Callable[[Inputs], Any]:
        """Returns a function from a batch's inputs to what `measured` takes. By default: the model's logits.

        Args:
            model: of the task, which is active when it is called.
            tokenizer: of the model, a `Tokenizer`.
            generation: of the task, if it has one.
        """
        return model.logits

    def measured(self, found: Any, labels: Any, metrics: Sequence[TextMetric] = ()) -> tuple[list[Any], list[int]]:  # noqa: ARG002
        """Per-item sums and counts for the metric. By default: correct labels and counted labels.

        A task with several metrics has a list of sums for each item.

        Args:
            found: what the function of `answering` returns.
            labels: [items], or [texts, tokens].
            metrics: that the task chooses.
        """
        logits: Floats = found
        counted = (labels != IGNORED).reshape(len(labels), -1)
        hits = (logits.argmax(-1) == labels).reshape(len(labels), -1) & counted
        return hits.sum(1).astype(float).tolist(), counted.sum(1).tolist()

    def value(self, mean: float) -> float:
        """The metric's value, from the mean of the sums of `measured`."""
        return mean


class EncodingKind(Kind):
    """A kind whose answers are read off the logits of one forward; those on texts need no `batch` of their own."""

    def encode(self, model: TaskModel, tokenizer: Any, works: Sequence[Any]) -> list[Outcome]:
        return self.outcomes(model.logits(self.batch(model, tokenizer, works)), works)

    def batch(self, model: TaskModel, tokenizer: Any, works: Sequence[Any]) -> Inputs:
        return padded([work.ids for work in works], pad_id(model.vocab_size, tokenizer))

    @abstractmethod
    def outcomes(self, logits: Floats, works: Sequence[Any]) -> list[Outcome]:
        """What the logits, [works, ...], say of each work."""

    @abstractmethod
    def told(self, task: TaskEntry, outcome: Any, top: int | None, **place: Any) -> Classification:
        """An outcome as a server writes it.

        Args:
            task: whose outcome it is.
            outcome: one of `outcomes`.
            top: how many of the likeliest classes are told; None for all.
            place: ``index`` and ``truncated`` of the answer.
        """


class TextClassification(EncodingKind):
    metric = "accuracy"

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Work:  # noqa: ARG002
        text = reader.cut(given, task.max_length)
        return Classify(text.ids, truncated=text.cut > 0)

    def outcomes(self, logits: Floats, works: Sequence[object]) -> list[Outcome]:  # noqa: ARG002 - of any input
        return [Classified(tuple(row)) for row in softmax(logits).tolist()]

    def prediction(self, task: TaskEntry, given: str, outcome: Classified) -> Prediction:
        score = max(outcome.probabilities)
        return Prediction(given, task.classes[outcome.probabilities.index(score)], score)

    def told(self, task: TaskEntry, outcome: Classified, top: int | None, **place: Any) -> Classification:
        pairs = sorted(zip(task.classes, outcome.probabilities, strict=True), key=lambda pair: -pair[1])
        scores = [ClassScore(*pair) for pair in pairs]
        return Classification(label=scores[0].label, score=scores[0].score, scores=scores[:top], **place)


class ImageClassification(TextClassification):
    def read(
        self,
        reader: ImageReader,  # type: ignore[override]
        task: TaskEntry,  # noqa: ARG002 - whichever
        given: str | os.PathLike[str] | bytes | Frame,
        max_new_tokens: int,  # noqa: ARG002
    ) -> Work:
        return ClassifyImage(reader.read(Path(given) if isinstance(given, (str, os.PathLike)) else given))

    def batch(self, model: TaskModel, tokenizer: Any, works: Sequence[ClassifyImage]) -> Inputs:  # noqa: ARG002
        """All pixels, float32 [images, channels, height, width]."""
        return {"pixel_values": np.stack([work.pixels for work in works])}


class TokenClassification(EncodingKind):
    """Finds a tag for every word, from its first token. Words that were cut off have none."""

    metric = "token accuracy"

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Tag:  # noqa: ARG002
        words = given.split()
        text, starts = reader.cut_words(words, task.max_length)
        return Tag(text.ids, starts, tuple(words), truncated=text.cut > 0)

    def outcomes(self, logits: Floats, works: Sequence[Tag]) -> list[Outcome]:
        shares = softmax(logits)
        best, choice = shares.max(-1).tolist(), np.argmax(shares, -1).tolist()  # [texts, tokens]
        firsts = [[(word, place) for place, word in enumerate(text.starts) if word is not None] for text in works]
        return [
            Tagged(tuple((text.words[word], choice[row][place], best[row][place]) for word, place in firsts[row]))
            for row, text in enumerate(works)
        ]

    def prediction(self, task: TaskEntry, given: str, outcome: Tagged) -> Prediction:
        tags = tuple((word, task.classes[number]) for word, number, _ in outcome.tags)
        return Prediction(given, " ".join(f"{word}/{tag}" for word, tag in tags), None, tags)

    def told(self, task: TaskEntry, outcome: Tagged, top: int | None, **place: Any) -> Classification:  # noqa: ARG002
        words = [TaggedWord(word, task.classes[number], score) for word, number, score in outcome.tags]
        return Classification(words=words, **place)


class LanguageModeling(Kind):
    """Continues a prompt; is measured by how well it predicts each next token."""

    metric = "perplexity"

    def read(self, reader: TokenReader, task: TaskEntry, given: str | PicturePrompt, max_new_tokens: int) -> Generate:
        """A prompt. It is never cut, since its end is what a continuation continues."""
        text, pictures = (given.text, len(given.pictures)) if isinstance(given, PicturePrompt) else (given, 0)
        assert isinstance(text, str)
        return Generate(reader.prompt(text, task, chat=task.takes_conversations, pictures=pictures), max_new_tokens)

    def prediction(self, task: TaskEntry, given: str, outcome: Generated) -> Prediction:  # noqa: ARG002 - no classes
        """The continuation, whole: where a prompt ends in a word, it mostly begins with a blank."""
        return Prediction(given, outcome.text, completion=outcome.text, tokens=outcome.tokens)

    def measured(self, found: Any, labels: Any, metrics: Sequence[TextMetric] = ()) -> tuple[list[Any], list[int]]:  # noqa: ARG002
        """Nats of each window: the logits of a token are those of the next one."""
        nats, counts = [], []
        for own, wanted in zip(found, labels[:, 1:], strict=True):  # one at a time: a large vocabulary takes memory
            counted = wanted != IGNORED
            shifted = own[:-1][counted]
            shifted = shifted - shifted.max(-1, keepdims=True)
            logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            nats.append(-float(logs[np.arange(len(logs)), wanted[counted]].sum(dtype=np.float64)))
            counts.append(int(counted.sum()))
        return nats, counts

    def value(self, mean: float) -> float:
        with np.errstate(over="ignore"):  # a hopeless model has infinite perplexity
            return float(np.exp(mean))


class TextGeneration(LanguageModeling):
    """Continues a prompt by a completion; is measured by how well greedy completions match those that are wanted."""

    def answering(self, model: TaskModel, tokenizer: Any, generation: Generation | None) -> Callable[[Inputs], Any]:
        """The greedy completion of each prompt of a batch."""
        assert generation is not None
        most = generation.max_new_tokens
        return lambda inputs: completions(model, tokenizer, inputs, most)

    def measured(
        self, found: Sequence[str], labels: Sequence[str], metrics: Sequence[TextMetric] = ()
    ) -> tuple[list[list[float]], list[int]]:
        return text_scores(metrics, found, labels), [1] * len(labels)

    def value(self, mean: float) -> float:
        return mean


_KINDS: Mapping[TaskKind, Kind] = {
    "text-classification": TextClassification(),
    "token-classification": TokenClassification(),
    "language-modeling": LanguageModeling(),
    "image-classification": ImageClassification(),
    "text-generation": TextGeneration(),
}


def kind_of(name: TaskKind) -> Kind:
    return _KINDS[name]
