"""Writes a decoder's directory anew, with the tokens that its tasks use.

The table of a small decoder is most of what is always in memory, and its head reads all of it for every token. Narrow
tasks use part of it (vocabulary trimming: Ushio et al. 2023, arXiv 2305.15020).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import has_picture_tower, quiet_transformers
from weightpager.backends.torch.export import free_target, refusals
from weightpager.bundle.files.new_directory import new_directory
from weightpager.bundle.format.manifest import TaskKind
from weightpager.bundle.settings import CONFIG, GENERATION, IMAGES, PROCESSOR, TOKENIZER, TOKENIZER_FILE
from weightpager.compiler.byte_pairs import BytePairs
from weightpager.compiler.data import TransformersTokens, classes, reader_of
from weightpager.compiler.model.checkpoint import Checkpoint
from weightpager.compiler.model.dense_model import check_config
from weightpager.compiler.model.directory import ModelDirectory, call, check_known, load_generation
from weightpager.compiler.model.gguf_model import with_directory
from weightpager.compiler.model.picture_tower import picture_reader, pictures_of
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.vocabulary_tables import ids_in, keep_rows, named_ids, renumbered, row_parameters
from weightpager.errors import CompileError, ConfigError
from weightpager.nn.experts import set_as_published
from weightpager.progress import Progress, silent
from weightpager.readers.picture_reader import PictureReader
from weightpager.task_data.held_out import items_reader, split_label
from weightpager.task_data.texts import Example, TextReader

Split = Literal["train", "eval"]


def task_texts(
    task_file: TaskFile, name: str, split: Split, tokenizer: Any, pictures: PictureReader | None = None
) -> list[Sequence[int]]:
    """The token ids of a task's texts, as they are learnt: of prompts with their completions, cut at its length.

    Of running texts all are there: where windows begin and what is left behind the last one hangs on the vocabulary.
    ``pictures`` reads those among the words.
    """
    task = task_file.tasks[name]
    reader: Any = reader_of(tokenizer, pictures) if task.completes else TransformersTokens(tokenizer)
    path = task.splits[split]
    where = split_label(name, split, path)
    if not task.labelled and not task.completes:
        running = TextReader(task.kind, *task.columns, reader, (), task_file.max_length_of(name))
        return [running.begin, *running.running(path, where)]
    known = classes(name, task) if task.labelled else ()
    read = items_reader(task.kind, task.columns, reader, known, task_file.max_length_of(name))
    items = read(path, where, task.items if split == "eval" else None)
    return [item.tokens for item in items if isinstance(item, Example)]


_OTHER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files of tokenizers that aren't fast: they would still describe the old vocabulary."""


_OF_PICTURES = (IMAGES, PROCESSOR)
"""Files that say how pictures are read, and in which places of a text they stand; tokens may be named in them, too."""

Texts = Mapping[str, list[Sequence[int]]]
"""Task → its texts, as token ids."""


@dataclass(frozen=True)
class TrimmedTask:
    """What a smaller vocabulary means for a task.

    Attributes:
        seen: number of different tokens in its training texts.
        before, after: number of tokens in its held-out texts.
    """

    seen: int
    before: int
    after: int


@dataclass(frozen=True)
class Trimmed:
    """A model with a smaller vocabulary.

    Attributes:
        path: the model's directory.
        before, after: number of tokens that it knew, and that it knows.
        row_parameters: of one token, in the embedding table and in a head that isn't tied to it.
        tasks: what becomes of each task, by name.
    """

    path: Path
    before: int
    after: int
    row_parameters: int
    tasks: Mapping[str, TrimmedTask]


def trim(task_file: TaskFile, out: Path, most: int | None = None, progress: Progress = silent) -> Trimmed:
    """Write the model of a task file with the tokens of its training texts alone, or with so many.

    These texts are cut into the same tokens as before; others are spelled by shorter ones. The model computes the same
    of them, but for the logits of tokens that are gone.

    Args:
        task_file: with the model and the tasks.
        out: the directory to create.
        most: tokens that are kept, the most frequent ones; where texts have more, they are spelled by shorter ones too,
            and where they have fewer, those that the tokenizer joins first come beside them.
        progress: told what is done.

    Raises:
        CompileError: the model is no decoder with byte pairs, or it or a task's data can't be used.
        ConfigError: ``out`` exists already or can't be written; the tasks read images.
    """
    _check(task_file)
    task_file = with_directory(task_file)
    target = free_target(out)
    with quiet_transformers():
        directory = ModelDirectory.open(task_file.model)
        check_config(directory, task_file)
        tokenizer, generation = directory.tokenizer(), load_generation(directory.path)
        pairs = BytePairs.of(tokenizer, str(directory.path))
        model = _model(directory)
        pictures = _pictures(directory, model, tokenizer)
        texts = dict(_read(task_file, "train", tokenizer, pictures, progress))
        before = dict(_read(task_file, "eval", tokenizer, pictures, progress))
        seen = Counter(token for of_task in texts.values() for text in of_task for token in text)
        others = {GENERATION: generation, **_of_pictures(directory)}
        named = named_ids(directory.config, str(directory.path / CONFIG))
        named = named.union(*(ids_in(values, str(directory.path / name)) for name, values in others.items()))
        if pictures is not None and (placed := reader_of(tokenizer, pictures).pictures) is not None:
            named |= placed.words
        kept = pairs.kept(seen, named, most)
        words = directory.config.get_text_config().vocab_size
        check_known(tokenizer, kept[-1], words, str(directory.path))
        new = {number: place for place, number in enumerate(kept)}
        keep_rows(model, new, str(directory.path))
        set_as_published(model)
        with new_directory(target, partial(refusals, target), replace=False) as temporary:
            with refusals(target):
                model.save_pretrained(temporary)
                _write_tokenizer(temporary, tokenizer, pairs, new)
                (temporary / GENERATION).unlink(missing_ok=True)  # transformers writes what it holds for usual
                for name, values in others.items():
                    if values:
                        text = json.dumps(renumbered(values, new, name), indent=2) + "\n"
                        (temporary / name).write_text(text, encoding="utf-8")
            directory = ModelDirectory.open(temporary)
            smaller = directory.tokenizer()
            pictures = _pictures(directory, model, smaller)
            with _longer():
                again, after = (dict(_read(task_file, split, smaller, pictures, progress)) for split in get_args(Split))
            if seen.keys() <= set(kept):
                for name, of_task in texts.items():
                    if [list(text) for text in of_task] != [[kept[number] for number in text] for text in again[name]]:
                        raise _reads_otherwise(task_file.model, name)
            else:
                _check_spelling(texts, tokenizer, smaller, task_file.model)
    tasks = {
        name: TrimmedTask(len(set().union(*texts[name])), _total(before[name]), _total(after[name])) for name in texts
    }
    return Trimmed(target, words, len(kept), row_parameters(model), tasks)


def _check(task_file: TaskFile) -> None:
    if task_file.takes_images:
        raise ConfigError("trim: expected tasks that read texts, found ones that read images, which have no tokens")
    for name, task in task_file.tasks.items():
        if task.train is None:
            raise ConfigError(f"tasks.{name}.train: expected a file, whose words are kept, found nothing")
        for key in ("head", "checkpoint"):
            if (path := getattr(task, key)) is not None:
                raise ConfigError(
                    f"tasks.{name}.{key}: expected none, found {path}: it goes with the whole vocabulary; leave it out"
                )


def _read(
    task_file: TaskFile, split: Split, tokenizer: Any, pictures: PictureReader | None, progress: Progress
) -> Iterator[tuple[str, list[Sequence[int]]]]:
    for number, name in enumerate(task_file.tasks, 1):
        yield name, task_texts(task_file, name, split, tokenizer, pictures)
        progress(f"read {split} texts", number, len(task_file.tasks))


def _pictures(directory: ModelDirectory, model: PreTrainedModel, tokenizer: Any) -> PictureReader | None:
    """What reads pictures among the words; None where the model has no tower."""
    if not has_picture_tower(model.config):
        return None
    images, path = directory.images(), directory.path
    pictures = call(path, pictures_of, model, tokenizer, images, path)
    return cast(PictureReader, call(path, picture_reader, images, pictures))


def _of_pictures(directory: ModelDirectory) -> dict[str, Any]:
    """The settings, by file, of how pictures are read; none where the model has no tower."""
    names = _OF_PICTURES if has_picture_tower(directory.config) else ()
    files = {name: directory.path / name for name in names}
    return {name: call(file, json.loads, file.read_bytes()) for name, file in files.items() if file.is_file()}


def _model(directory: ModelDirectory) -> PreTrainedModel:
    """The directory's decoder."""
    where, hint = str(directory.path), "; trim needs a decoder that was saved with its head"
    kind: TaskKind = "text-generation" if has_picture_tower(directory.config) else "language-modeling"
    return Checkpoint.load(directory, kind, where, hint=hint).model


def _write_tokenizer(folder: Path, tokenizer: Any, pairs: BytePairs, new: Mapping[int, int]) -> None:
    tokenizer.save_pretrained(folder)
    for name in _OTHER_FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / TOKENIZER_FILE).write_text(json.dumps(pairs.renumbered(new), ensure_ascii=False), encoding="utf-8")
    settings = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    if added := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {str(new[int(number)]): token for number, token in added.items()}
        (folder / TOKENIZER).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_spelling(texts: Texts, tokenizer: Any, smaller: Any, path: Path) -> None:
    """Refuse a tokenizer that can't spell a training text."""
    for name, of_task in texts.items():
        for text in map(tokenizer.decode, of_task):
            ours, theirs = (each.decode(each.encode(text, add_special_tokens=False)) for each in (smaller, tokenizer))
            if ours != theirs:
                raise _reads_otherwise(path, name)


def _reads_otherwise(path: Path, task: str) -> CompileError:
    return CompileError(
        f"{path}: expected a tokenizer whose tokens are joined from pairs alone, found one that reads a text of "
        f"tasks.{task} otherwise with fewer tokens"
    )


def _total(texts: list[Sequence[int]]) -> int:
    return sum(map(len, texts))


@contextmanager
def _longer() -> Iterator[None]:
    """Say of texts that no longer fit why they don't."""
    try:
        yield
    except CompileError as error:
        raise CompileError(f"{error}. With fewer tokens in the vocabulary texts take more of them") from None
