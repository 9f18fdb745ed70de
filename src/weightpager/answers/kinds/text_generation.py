"""Prompts that are answered by texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weightpager.answers.generation import completions
from weightpager.answers.kinds.language_modeling import LanguageModeling
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.text_metrics import text_scores
from weightpager.bundle.format.manifest import Generation, TextMetric


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
        """Each completion's values by the metrics."""
        return text_scores(metrics, found, labels), [1] * len(labels)

    def value(self, mean: float) -> float:
        """The mean over the texts."""
        return mean


KIND = TextGeneration()
