"""A picture tower that learns to see rendered roads, before a language model reads its features.

A connector reads each patch's feature by itself. So each patch learns to tell what is in it, and, as the tower lets
patches look at each other, what the answers about the whole picture are.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from inspect import getsource
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Dinov2Model

from weightpager.compiler.training.device import autocast
from weightpager_lab.samples import dinov2, resumable
from weightpager_lab.samples.download import build_once, key_of
from weightpager_lab.samples.driving import images
from weightpager_lab.samples.driving_questions import ANSWERS, FRAME, SEEN, SEEN_FILE, answers_of, picture_name
from weightpager_lab.samples.resumable import Group, Stage, Workshop
from weightpager_lab.samples.sample import Sample

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pictures that DINOv2 was trained on, by channel."""

_RARE = 5.0  # how much more a thing counts that is there than one that isn't: few patches have one
_DENSE = 20.0  # how much all that is in the patches counts, beside one task
_EACH = 0.5  # how much a task's answer counts that every patch gives by itself, beside that of all of them together
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scenes:
    """Pictures of a split.

    Attributes:
        pictures: uint8 [N, 3, side, side].
        answers: places in `ANSWERS`, [N, tasks].
        seen: what is in each patch, bool [N, patches, SEEN]; only training pictures have it.
    """

    pictures: Tensor
    answers: Tensor
    seen: Tensor | None

    def __len__(self) -> int:
        return len(self.pictures)


def scenes_of(samples: Sequence[Sample], split: str, most: int | None = None) -> Scenes:
    """A split's pictures, the first so many."""
    folder = samples[0].train.parent
    answers = torch.from_numpy(answers_of(samples, split)[:most])
    names = [picture_name(split, number) for number in range(len(answers))]
    pictures = torch.from_numpy(images(folder, names)).permute(0, 3, 1, 2)
    seen = torch.from_numpy(np.load(folder / SEEN_FILE)[:most]) if split == "train" else None
    return Scenes(pictures, answers, seen)


def values_of(pictures: Tensor) -> Tensor:
    """Pictures as the tower takes them, float32 [N, 3, side, side]: as the image processor's settings say."""
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
    return (pictures.float() / 255 - mean) / deviation


def patches_of(tower: Dinov2Model, pictures: Tensor) -> Tensor:
    """The features that LLaVA's connector reads with ``vision_feature_layer`` −1, [N, patches, width]."""
    with autocast(_CPU):
        hidden: Tensor = tower(values_of(pictures), output_hidden_states=True).hidden_states[-1]
    return hidden[:, 1:]


def features_of(tower: Dinov2Model, pictures: Tensor) -> Tensor:
    """`patches_of` any number of pictures, bfloat16."""
    with torch.inference_mode():
        return torch.cat([patches_of(tower, part).bfloat16() for part in torch.split(pictures, 32)])


class SeeingTower(nn.Module):
    """A tower with linear heads on its patches: what is in each, and each task's answer."""

    def __init__(self, tower: Dinov2Model) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.counts = [len(answers) for answers in ANSWERS.values()]
        self.answers = nn.Linear(width, sum(self.counts))
        self.seen = nn.Linear(width, len(SEEN))

    def loss(self, scenes: Scenes, chosen: Tensor) -> Tensor:
        assert scenes.seen is not None
        patches = patches_of(self.tower, scenes.pictures[chosen]).float()
        found = binary_cross_entropy_with_logits(
            self.seen(patches), scenes.seen[chosen].float(), pos_weight=torch.tensor(_RARE)
        )
        total = _DENSE * found
        for given, right in zip(self._answers(patches), scenes.answers[chosen].unbind(1), strict=True):
            each = right[:, None].expand(given.shape[:2])
            total = total + cross_entropy(given.mean(1), right)
            total = total + _EACH * cross_entropy(given.flatten(0, 1), each.flatten())
        return total

    def right(self, scenes: Scenes) -> Tensor:
        """The share of right answers to each task, by all patches together."""
        patches = features_of(self.tower, scenes.pictures).float()
        with torch.inference_mode():
            given = [logits.mean(1).argmax(1) for logits in self._answers(patches)]
        return (torch.stack(given, 1) == scenes.answers).float().mean(0)

    def _answers(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Logits of each patch for each task, [N, patches, answers]."""
        return self.answers(patches).split(self.counts, -1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Seeing:
    """How much a tower is trained: pictures and steps, at 8.5 GFLOP a picture."""

    steps: int = 1500
    batch: int = 16
    rate: float = 1.5e-4


RIGHT_FILE = "right.json"
"""Shares of right answers to the validation split, by the tower's own heads."""


def road_tower(
    cache: Path,
    samples: Sequence[Sample],
    tower: Path,
    *,
    seeing: Seeing = Seeing(),
    seconds: float,
    report: Callable[[str], None],
) -> Path:
    """The directory of a tower that has learned to see, in ``cache``; trained at the first call, resumable.

    Args:
        cache: a directory, created if need be.
        samples: as `driving_questions` gives them.
        tower: a directory of a `Dinov2Model`, which `coarser` makes read 2 × 2 patches as one.
        seeing: how much it is trained.
        seconds: between two writes of what a killed training goes on from.
        report: called with a line of text now and then.

    Raises:
        SampleUnavailable: the cache cannot be written.
    """
    source = [getsource(module) for module in (sys.modules[__name__], dinov2, resumable)]
    parts = [samples[0].train.parent.name, tower.name]
    name = f"road-tower-{key_of(source=source, parts=parts, seeing=asdict(seeing))}"
    workshop = Workshop(cache / "unfinished" / name, seconds, report)

    def build(directory: Path) -> None:
        model = dinov2.coarser(Dinov2Model.from_pretrained(tower, dtype=torch.float32), FRAME)
        right = _teach(model, scenes_of(samples, "train"), scenes_of(samples, "validation"), seeing, workshop)
        report(f"tower: {shares(right)}")
        model.save_pretrained(directory)
        (directory / RIGHT_FILE).write_text(json.dumps(right.tolist()) + "\n", encoding="utf-8")

    target = build_once(cache / "models" / name, build)
    shutil.rmtree(workshop.folder, ignore_errors=True)
    return target


def _teach(tower: Dinov2Model, lessons: Scenes, tests: Scenes, seeing: Seeing, workshop: Workshop) -> Tensor:
    """Train the tower in place. Returns the shares of its heads' right answers to ``tests``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        headed = SeeingTower(tower)
    heads = [*headed.answers.parameters(), *headed.seen.parameters()]

    def loss(random: torch.Generator) -> Tensor:
        return headed.loss(lessons, torch.randint(0, len(lessons), (seeing.batch,), generator=random))

    some = Scenes(tests.pictures[:200], tests.answers[:200], None)
    # The last norm isn't passed: the connector reads what goes into it.
    learning = [value for name, value in tower.named_parameters() if not name.startswith("layernorm.")]
    groups = [Group(learning, seeing.rate), Group(heads, 1e-3)]

    def look() -> str:
        return shares(headed.right(some))

    workshop.train(Stage("tower", groups, seeing.steps, loss, look, seed=1, look_every=250))
    return headed.right(tests)


def shares(right: Tensor) -> str:
    """Shares of right answers in words; the mean is of the five tasks that `driving` has too."""
    each = ", ".join(f"{task} {share:.3f}" for task, share in zip(ANSWERS, right.tolist(), strict=True))
    return f"right {right[:5].mean():.3f} ({each})"
