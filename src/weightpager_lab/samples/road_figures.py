"""What the vision-language model for rendered roads answers on scenes that it never saw: ``python -m`` this module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from weightpager_lab.samples.driving_questions import driving_questions
from weightpager_lab.samples.road_answers import Rows, plain_ids, right_answers
from weightpager_lab.samples.road_llava import road_llava
from weightpager_lab.samples.road_tower import features_of, scenes_of, shares
from weightpager_lab.samples.sample import Sample


def figures(model: Path, samples: Sequence[Sample], split: str) -> Tensor:
    """The share of greedy answers that are right to the letter, by task, of a split's scenes.

    Args:
        model: a directory that `road_llava` made.
        samples: as `driving_questions` gives them.
        split: ``validation`` or ``eval``.
    """
    opened = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    scenes = scenes_of(samples, split)
    features = features_of(opened.model.vision_tower, scenes.pictures)
    rows = Rows(plain_ids(tokenizer), tokenizer.eos_token_id, opened.config.image_seq_length)
    return right_answers(opened, rows, features, scenes.answers).float().mean(0)


def main(cache: Path, split: str = "eval") -> None:
    """Print the figures of the model in a cache, which is trained there if need be."""
    samples = driving_questions(cache, report=typer.echo)
    model = road_llava(cache, samples, report=typer.echo)
    typer.echo(f"{model}, {split}: {shares(figures(model, samples, split))}")


if __name__ == "__main__":
    typer.run(main)
