"""An adapter or a system message becomes a task of a bundle: no compiler, no torch, and all pages stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import structs

from weightpager.blocks import MAX_TASKS
from weightpager.bundle.format import page_file, placement
from weightpager.bundle.format.low_rank import LowRank
from weightpager.bundle.format.manifest import MOST_SYSTEM, EvalData, Generation, Manifest, TaskEntry, transitions_of
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH, private_file
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.format.picture_tower import is_before_words
from weightpager.bundle.format.placement import Placement
from weightpager.bundle.low_rank_pages import LowRankPages
from weightpager.bundle.peft import PeftAdapter
from weightpager.bundle.reader import Bundle
from weightpager.bundle.writer import BundleWriter, writing
from weightpager.config import is_unicode
from weightpager.errors import BundleFormatError, ConfigError, shown


@dataclass(frozen=True)
class Addition:
    """A task for a bundle: another task's blocks and parameters, with an adapter, a system message or both.

    Attributes:
        name: of the new task.
        adapter: directory that PEFT's ``save_pretrained`` wrote, of a LoRA trained on the model that was compiled.
        like: the task whose blocks, kind and settings it takes; None for the first that keeps all blocks.
        system: the message that begins conversations which bring none.
        eval: held-out data that it can be measured on.
        generation: how its answers are made, in place of how those of ``like`` are.
    """

    name: str
    adapter: str | Path | None = None
    like: str | None = None
    system: str | None = None
    eval: EvalData | None = None
    generation: Generation | None = None


def add_task(path: str | Path, addition: Addition) -> Bundle:
    """Add a task to a bundle.

    The bundle is exchanged as a whole, or stays as it was; the other tasks' outputs don't change by a bit.

    Raises:
        ConfigError: the name can't be taken, ``like`` has an adapter itself, reads no conversations or must be stated,
            or the adapter doesn't fit; nothing has changed.
        BundleError: the bundle can't be used, has no such task as ``like``, or was replaced meanwhile.
        CompileError: the storage refused a write, or another command is writing there.
    """
    bundle = Bundle.open(path)
    checked = _Checked.of(bundle, addition)
    with writing(path, force=True, origin=bundle) as writer:
        kept = {*bundle.manifest.files, *bundle.manifest.page_file_names()}
        for file in kept - {MANIFEST, MANIFEST_HASH, page_file.FILE, placement.FILE}:
            writer.link(file, bundle.path / file)
        checked.write(writer)
    return Bundle.open(path)


def add_to_written(writer: BundleWriter, addition: Addition) -> None:
    """The same with a bundle that was just written and that nobody reads yet. Errors are those of `add_task`."""
    _Checked.of(Bundle.open(writer.root), addition).write(writer)


@dataclass(frozen=True)
class _Checked:
    """A task that a bundle gets: its entry, the task whose blocks it takes, and what is added to them."""

    bundle: Bundle
    entry: TaskEntry
    origin: str
    adapter: PeftAdapter | None

    @classmethod
    def of(cls, bundle: Bundle, addition: Addition) -> _Checked:
        """Read and check it. Errors are those of `add_task`."""
        if addition.adapter is None and addition.system is None:
            raise ConfigError(f"{addition.name}: expected an adapter, a system message or both, found neither")
        origin = _origin(bundle, addition.like)
        named = structs.replace(_named(bundle, origin, addition.name), eval=addition.eval)
        if addition.generation is not None:
            named = structs.replace(named, generation=addition.generation)
        entry, found = _begun(named, addition.system), None
        if addition.adapter is not None:
            found = PeftAdapter.read(addition.adapter, bundle.manifest.weights)
            _check(bundle, origin.name, found)
        return cls(bundle, entry, origin.name, found)

    def write(self, writer: BundleWriter) -> None:
        """Write what the task has of its own, and what names all tasks, beside the bundle's other files."""
        bundle, origin, entry = self.bundle, self.origin, self.entry
        writer.link(private_file(entry.name), bundle.path / private_file(origin))
        parts = {} if self.adapter is None else {entry.name: dict(_placed(bundle, origin, self.adapter))}
        written = LowRankPages.write(writer, _manifest(bundle, origin, entry), parts)
        number, blocks = bundle.task_numbers[origin], bundle.placement
        used = np.concatenate([blocks.used, blocks.used[number : number + 1]])
        placed = Placement(blocks.numbers, blocks.layers, blocks.blocks, used)
        writer.put_placement(placed.followed_by_empty(written.index.layers))
        writer.put_index(_index(bundle, number).followed_by(written.index).with_rows(bundle.row_ids))
        writer.finish(written.manifest)


def _origin(bundle: Bundle, like: str | None) -> TaskEntry:
    origin = bundle.task(_whole(bundle) if like is None else like)
    if origin.low_rank is not None:
        raise ConfigError(f"like: expected a task without low-rank parts, found {origin.name}, which has some")
    return origin


def _whole(bundle: Bundle) -> str:
    """The first task that computes as the model that was compiled does, but for the rounding of its blocks."""
    blocks = sum(bundle.manifest.grid(weight).count for weight in bundle.manifest.weights)
    for number, task in enumerate(bundle.manifest.tasks):
        if bundle.placement.kept(number) == blocks and task.low_rank is None:
            return task.name
    raise ConfigError(
        f"like: expected the name of the task whose blocks the new one takes, as none keeps all of them; the tasks are "
        f"{', '.join(bundle.tasks)}"
    )


def _named(bundle: Bundle, origin: TaskEntry, name: str) -> TaskEntry:
    if name in bundle.tasks:
        raise ConfigError(
            f"name: expected a new one, found {name!r}, which {bundle.path} has; 'weightpager remove' removes it"
        )
    if len(bundle.tasks) >= MAX_TASKS:
        raise ConfigError(f"{bundle.path}: expected fewer than {MAX_TASKS} tasks, found {len(bundle.tasks)}")
    entry = structs.replace(origin, name=name, dense=None, eval=None)
    try:
        return TaskEntry.read(MANIFEST, entry.dump())
    except BundleFormatError as error:
        wanted = "lower-case letters and digits, then '_', '.' and '-' too, 64 at most"
        raise ConfigError(f"name: expected {wanted}, found {shown(name)}") from error


def _begun(entry: TaskEntry, system: str | None) -> TaskEntry:
    """The entry with a message that begins the task's conversations."""
    if system is None:
        return entry
    if not entry.takes_conversations:
        raise ConfigError(
            f"system: expected a task that answers conversations, found {entry.name} beside one that doesn't"
        )
    if not 0 < len(system) <= MOST_SYSTEM or not is_unicode(system):
        wanted = f"1 to {MOST_SYSTEM:,} characters of Unicode text"
        raise ConfigError(f"system: expected {wanted}, found {len(system):,}, {shown(system)}")
    assert entry.generation is not None
    return structs.replace(entry, generation=structs.replace(entry.generation, system=system))


def _check(bundle: Bundle, origin: str, adapter: PeftAdapter) -> None:
    """Refuse parts of weights that the task does without, or that all tasks must have alike."""
    shared = bundle.pictures is not None and bundle.pictures.blocks == "shared"
    dropped, weights = bundle.dropped(origin), {weight.name: weight for weight in bundle.manifest.weights}
    for name in adapter.parts:
        if name in dropped:
            raise ConfigError(f"adapter: expected parts of weights that {origin} keeps, found one of {name}")
        if shared and is_before_words(name):
            raise ConfigError(f"adapter: expected no part of the picture tower, which tasks share; found {name}")
        most = min(weights[name].in_features, weights[name].out_features)
        if adapter.rank > most:
            raise ConfigError(f"adapter: expected ranks up to {most}, that of {name}, found {adapter.rank}")


def _placed(bundle: Bundle, origin: str, adapter: PeftAdapter) -> Iterator[tuple[str, LowRank]]:
    """The parts with rows and columns as the bundle's weights have them."""
    orders = bundle.permutations()
    for name, part in adapter.parts.items():
        moved = orders.of(origin, f"{name}.weight")
        down = part.down if 1 not in moved else part.down[:, moved[1]]
        yield name, LowRank(down, part.up if 0 not in moved else part.up[moved[0]])


def _index(bundle: Bundle, number: int) -> PageIndex:
    """The pages, of which the new task needs those that task ``number`` needs."""
    pages = bundle.pages
    needs = (pages.signatures >> np.uint64(number)) & np.uint64(1)
    return PageIndex(pages.ids, pages.layers, pages.signatures | (needs << np.uint64(len(bundle.tasks))))


def _manifest(bundle: Bundle, origin: str, entry: TaskEntry) -> Manifest:
    old = bundle.manifest
    tables = [
        structs.replace(table, uses={**table.uses, entry.name: table.uses[origin]}) if origin in table.uses else table
        for table in old.row_tables
    ]
    transitions = transitions_of(old).extended([entry.name])
    return structs.replace(
        old, tasks=[*old.tasks, entry], row_tables=tables, transitions=transitions.matrix.tolist(), files={}
    )
