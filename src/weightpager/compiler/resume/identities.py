"""What a compile and the stages that compiles share depend on, as hashes: equal ones mean equal results."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tokenizers
import torch
import transformers
from blake3 import blake3

import weightpager
from weightpager.bundle.files.entry import hash_file
from weightpager.compiler.data import classes
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import TaskSpec, UnitsSpec, VisionSpec
from weightpager.compiler.training.device import Arithmetic, training_device
from weightpager.task_data.held_out import fingerprint
from weightpager.task_data.row_files import hashed

_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken", ".jinja")
"""Endings of what a model is loaded from: weights, configuration, vocabulary, chat template."""

_ROOMS = ("answers", "backends", "compiler", "kernels", "nn", "readers", "task_data")
"""Where the code lies that reads data and runs models."""


def stage_identities(task_file: TaskFile, base: str) -> tuple[str, str, str]:
    """Hashes of all that decides on the stages that compiles share; none depends on sparsity, alignment or recovery.

    ``base`` is the identity of the bundle that tasks are added to; empty without one.

    Returns:
        Those of the trained dense model, of its scores on held-out data, and of its calibration.
    """
    dense = _hash(base, *_machine(), *_weight_facts(task_file.model), *_learnt(task_file))
    held_out = [
        f"{fingerprint(task.eval, f'tasks.{name}.eval', task.kind, task.columns)} {task.eval.suffix} {task.items}"
        + (f" {task.wanted_metrics} {task.max_new_tokens}" if task.completes else "")
        for name, task in task_file.tasks.items()
        if task.eval is not None
    ]
    held_out.append(str(task_file.dtype == "float32"))  # then nothing is rounded: see `torch_score`
    return dense, _hash(dense, *held_out), _hash(dense, task_file.calibration.model_dump_json(), task_file.saliency)


def compile_identity(task_file: TaskFile) -> str:
    """A hash of all settings that matter, of the tasks' files and of the model's: equal ones train equal weights."""
    # What is usual says nothing, above all of a tower where there is none.
    usual = {"vision"} if task_file.vision == VisionSpec() else set()
    usual |= {"units", "keep"} if (task_file.units, task_file.keep) == (UnitsSpec(), None) else set()
    facts = [task_file.model_dump_json(exclude={"compare", "added", *usual})]
    facts += [str(sorted(spec.stated_steps)) for spec in (task_file.training, task_file.recover)]
    for name, task in task_file.tasks.items():
        facts.append(_training_data(name, task))
        if task.validation is not None:
            facts.append(fingerprint(task.validation, f"tasks.{name}.validation", task.kind, task.columns))
    brought = [path for task in task_file.tasks.values() for path in (task.head, task.checkpoint) if path is not None]
    facts += [fact for folder in (task_file.model, *brought) for fact in _weight_facts(folder)]
    if task_file.trained_tasks:  # all stages rest on the dense model, which another machine trains otherwise
        facts += _machine()
    if task_file.transitions is not None:
        facts.append(hashed(task_file.transitions, str(task_file.transitions)))
    return _hash(*facts)


def _weight_facts(folder: Path) -> list[str]:
    """Names and hashes of what a model is loaded from."""
    files = sorted(path for suffix in _MODEL_FILES for path in folder.glob(f"*{suffix}"))
    return [f"{path.name} {hashed(path, str(path))}" for path in files]


@cache
def own_code() -> str:
    """A hash of the Python that trains and measures. In a checkout it changes while the version stays."""
    rooms = [Path(weightpager.__file__).parent / room for room in _ROOMS]
    return _hash(*(hash_file(path).blake3 for room in rooms for path in sorted(room.rglob("*.py"))))


@cache
def _native_code() -> str:
    """A hash of the native module; empty where it hasn't been built. Two builds of the same code may differ."""
    found = find_spec("weightpager.kernels._native")
    return "" if found is None or found.origin is None else hash_file(Path(found.origin)).blake3


def _machine() -> list[str]:
    """Code, versions and hardware, which decide the last digits."""
    device = training_device()
    kind = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    versions = [package.__version__ for package in (weightpager, torch, transformers, tokenizers)]
    return [own_code(), _native_code(), *versions, device.type, kind, repr(Arithmetic.here())]


def _learnt(task_file: TaskFile) -> list[str]:
    """What decides what is learnt: the tasks, their data, and how models are trained."""
    training = task_file.training
    facts = [training.model_dump_json(), str(sorted(training.stated_steps))]
    for name, task in task_file.tasks.items():
        data = _training_data(name, task)
        facts.append(f"{name} {task.kind} {task.columns} {task_file.max_length_of(name)} {data}")
        for folder in (task.head, task.checkpoint):
            facts += ["none"] if folder is None else _weight_facts(folder)
    if any(task.checkpoint is not None for task in task_file.tasks.values()):  # their blocks are compared as stored
        facts.append(f"{task_file.block} {task_file.dtype} {task_file.tolerance}")
    return facts


def _training_data(name: str, task: TaskSpec) -> str:
    """What is learnt from. A file's ending says how it is read.

    Of images the fingerprint has labels as texts, and whole numbers are classes in another order than texts.
    """
    if task.train is None:
        return "none"
    data = fingerprint(task.train, f"tasks.{name}.train", task.kind, task.columns)
    ordered = classes(name, task) if task.takes_images and task.trained else ()
    return f"{data} {task.train.suffix} {ordered}"


def _hash(*facts: str) -> str:
    return blake3("\n".join(facts).encode()).hexdigest()
