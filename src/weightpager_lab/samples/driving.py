"""Five labelled tasks on the same pictures of roads, and a ViT that is trained on these alone.

All pictures are rendered: no photograph, no real road, nothing pretrained. A compile's own training, a step for one
task after the other, hardly gets beyond guessing from random weights in the same time. Here every step teaches all five
tasks at once, and what is to be seen in each patch: a picture then tells 69 things instead of one.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from transformers import ViTConfig, ViTModel

from weightpager.compiler.training.device import autocast
from weightpager_lab.samples import road_scene
from weightpager_lab.samples.download import build_once, key_of
from weightpager_lab.samples.recipes import SPLITS, check_sizes, split_sizes
from weightpager_lab.samples.road_scene import MARKS, SIDE
from weightpager_lab.samples.sample import Sample, SampleUnavailable


def driving(
    cache: Path, *, train_scenes: int = 4000, eval_scenes: int = 1000, report: Callable[[str], None]
) -> list[Sample]:
    """The five tasks' files in ``cache``, rendered at the first call.

    Scene ``n`` of a split is drawn from the two numbers (split, n): splits never share one, and a larger size only adds
    some. Needs Pillow.

    Args:
        cache: a directory, created if need be.
        train_scenes: to learn from.
        eval_scenes: in each of the validation and the evaluation split.
        report: called with a line of text when all has been rendered.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: Pillow isn't installed, or the cache cannot be written.
    """
    limits = split_sizes(train_scenes, eval_scenes)
    check_sizes(limits)
    target = cache / "samples" / f"driving-{key_of(source=inspect.getsource(road_scene), limits=limits)}"
    directory = build_once(target, partial(_build, limits, report))
    return [
        Sample(task, "image-classification", classes, *(directory / f"{task}.{split}.jsonl" for split in SPLITS))
        for task, classes in road_scene.CLASSES.items()
    ]


MARKS_FILE = "train.marks.npz"
"""What is to be seen where in the training pictures, ``marks`` [N, SIDE, SIDE] as `render` has them."""


def picture(split: int, number: int) -> tuple[road_scene.Scene, road_scene.Pixels, road_scene.Pixels]:
    """A scene, how it looks, and what is to be seen where: the same two numbers give the same pixels."""
    random = np.random.default_rng([split, number])
    scene = road_scene.draw(random)
    return scene, *road_scene.render(scene, random)


def images(folder: Path, names: Sequence[str]) -> road_scene.Pixels:
    """Pictures of a sample's folder, [N, SIDE, SIDE, 3]."""
    from PIL import Image

    pictures = []
    for name in names:
        with Image.open(folder / name) as image:
            pictures.append(np.asarray(image))
    return np.stack(pictures)


def _build(limits: dict[str, int], report: Callable[[str], None], directory: Path) -> None:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise SampleUnavailable("expected the package 'PIL', found none; install 'weightpager[images]'") from error
    (directory / "pictures").mkdir()
    marks = []
    for place, split in enumerate(SPLITS):
        rows: dict[str, list[str]] = {task: [] for task in road_scene.CLASSES}
        for number in range(limits[split]):
            scene, pixels, seen = picture(place, number)
            if split == "train":
                marks.append(seen)
            name = f"pictures/{split}-{number:05d}.png"
            Image.fromarray(pixels).save(directory / name)
            for task, label in scene.labels().items():
                rows[task].append(json.dumps({"image": name, "label": label}) + "\n")
        for task, lines in rows.items():
            (directory / f"{task}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    np.savez_compressed(directory / MARKS_FILE, marks=np.stack(marks))
    report("driving: " + ", ".join(f"{split} {size} rendered scenes" for split, size in limits.items()))


STEPS = 1500
_BATCH, _RATE, _SEED = 16, 1e-3, 0
_PATCH = 8
_SHAPE: dict[str, Any] = {
    "image_size": SIDE, "patch_size": _PATCH, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6,
    "intermediate_size": 768, "initializer_range": 0.05,
}  # fmt: skip
_SETTINGS = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
_README = """# A ViT for rendered roads

**Trained here, from random weights, on rendered scenes alone** ({steps} steps of {batch}). It has seen no photograph
and says nothing about real roads. Say so wherever a number measured with it is shown.
"""
_RARE = 5.0  # how much more a mark counts that is there than one that isn't: few patches have one
_DENSE = 20.0  # how much all patches count, beside one task


@dataclass(frozen=True)
class _Lessons:
    """Pictures uint8 [N, 3, SIDE, SIDE], classes [N, tasks], marks float32 [N, patches, marks]."""

    pictures: Tensor
    classes: Tensor
    marks: Tensor


def road_model(cache: Path, samples: Sequence[Sample], *, steps: int = STEPS, report: Callable[[str], None]) -> Path:
    """The model's directory in ``cache``, without heads; trained at the first call, on the samples' training pictures.

    2.7 million parameters; about four minutes on one core.

    Args:
        cache: a directory, created if need be.
        samples: as `driving` gives them.
        steps: of training.
        report: called with a line of text now and then.

    Raises:
        SampleUnavailable: the cache cannot be written.
    """
    source = inspect.getsource(sys.modules[__name__])
    key = key_of(source=source, data=samples[0].train.parent.name, steps=steps)

    def build(directory: Path) -> None:
        model = _taught(_lessons(samples), steps, report)
        model.save_pretrained(directory)
        (directory / "preprocessor_config.json").write_text(json.dumps(_SETTINGS, indent=2) + "\n", encoding="utf-8")
        (directory / "README.md").write_text(_README.format(steps=steps, batch=_BATCH), encoding="utf-8")

    return build_once(cache / "models" / f"road-vit-{key}", build)


def _lessons(samples: Sequence[Sample]) -> _Lessons:
    rows = [[json.loads(line) for line in sample.train.read_text(encoding="utf-8").splitlines()] for sample in samples]
    classes = [
        [sample.classes.index(row["label"]) for row in of_task] for sample, of_task in zip(samples, rows, strict=True)
    ]
    folder = samples[0].train.parent
    pictures = torch.from_numpy(images(folder, [row["image"] for row in rows[0]])).permute(0, 3, 1, 2)
    marks = torch.from_numpy(np.load(folder / MARKS_FILE)["marks"]).long()  # [N, SIDE, SIDE]
    grid = SIDE // _PATCH
    there = one_hot(marks, len(MARKS) + 1)[..., 1:].reshape(len(marks), grid, _PATCH, grid, _PATCH, len(MARKS))
    return _Lessons(pictures, torch.tensor(classes).T, there.amax((2, 4)).flatten(1, 2).float())


def _taught(lessons: _Lessons, steps: int, report: Callable[[str], None]) -> ViTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = _new_model()
        width, counts = model.config.hidden_size, lessons.classes.amax(0) + 1
        heads = nn.ModuleList(nn.Linear(width, int(count)) for count in [*counts, len(MARKS)])
        values = [*model.parameters(), *heads.parameters()]
        optimizer = torch.optim.AdamW(values, lr=_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
        for step in range(steps):
            chosen = torch.randint(0, len(lessons.pictures), (_BATCH,))
            loss = _loss(model, heads, lessons, chosen)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 100 == 0:
                report(f"road model: step {step + 1} of {steps}, loss {loss.item():.2f}")
    return model.eval()


def _loss(model: ViTModel, heads: nn.ModuleList, lessons: _Lessons, chosen: Tensor) -> Tensor:
    pixels = lessons.pictures[chosen].float() / 127.5 - 1  # as the image processor's settings say
    *of_tasks, of_patches = heads
    with autocast(pixels.device):
        hidden = model(pixel_values=pixels).last_hidden_state.float()  # [B, 1 + patches, width]
        answers = [head(hidden[:, 0]).float() for head in of_tasks]
        seen = of_patches(hidden[:, 1:]).float()
    right = lessons.classes[chosen].unbind(1)
    tasks = sum(cross_entropy(given, wanted) for given, wanted in zip(answers, right, strict=True))
    dense = binary_cross_entropy_with_logits(seen, lessons.marks[chosen], pos_weight=torch.tensor(_RARE))
    return tasks + _DENSE * dense


def _share(step: int, steps: int) -> float:
    """Of the peak rate: it rises over a tenth of the steps and falls to zero by a cosine."""
    rise = steps / 10
    return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * max(0.0, (step - rise) / (steps - rise)))) / 2


def _new_model() -> ViTModel:
    """Random, but for positions, which are waves of different length (Vaswani et al. 2017) in both directions."""
    model = ViTModel(ViTConfig(**_SHAPE), add_pooling_layer=False)
    width, grid = model.config.hidden_size // 4, SIDE // _PATCH
    rates = 1e4 ** -(torch.arange(width) / (width - 1))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 1:] = waves
    return model
