"""Tensors that a compile keeps on disk: one file, whole and of a known owner, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from safetensors import SafetensorError, safe_open

from weightpager.bundle.files.new_directory import scratch, sync
from weightpager.errors import CompileError

if TYPE_CHECKING:  # what is kept can be listed and removed without torch
    from torch import Tensor

_DAMAGE = (SafetensorError, ValueError, KeyError)

Owner = Mapping[str, str]
"""What an entry's maker states of itself; who asks for it has to state the same."""


@dataclass(frozen=True)
class Entry:
    """What a file of the journal or the cache holds.

    Attributes:
        step: the step that the stage had reached.
        seconds: the time that it had taken.
        tensors: what the stage keeps, by name.
    """

    step: int
    seconds: float
    tensors: dict[str, Tensor]


UNFINISHED = ".unfinished-"
"""How the names of directories begin that hold a file which isn't whole yet."""


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where to write what takes its place at ``path`` if the body ends well. What killed processes have left goes.

    In a directory of its own: the library that writes it puts a file beside it, which a kill leaves.
    """
    with scratch(path.parent, UNFINISHED) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


def write_entry(path: Path, owner: Owner, entry: Entry) -> None:
    """Write an entry with a hash of its tensors, to the disk. The caller has to make the file appear in one step.

    Raises:
        OSError, CompileError: the storage refused it.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
    facts = {"step": str(entry.step), "seconds": f"{entry.seconds:.3f}", "blake3": _digest(tensors)}
    try:
        save_file(tensors, path, metadata=dict(owner) | facts)
    except SafetensorError as error:  # its way to say that the disk is full
        raise CompileError(f"cannot write {path.parent}: {error}") from error
    sync(path)


def read_entry(path: Path, owner: Owner) -> Entry | None:
    """The entry in a file; None if it is damaged, or another owner's.

    Raises:
        OSError: the file isn't there any more, or can't be read now.
    """
    with suppress(*_DAMAGE), _opened(path) as file:
        facts = file.metadata() or {}
        if owner.items() <= facts.items():
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _digest(tensors) == facts["blake3"]:
                return Entry(int(facts["step"]), float(facts["seconds"]), tensors)
    return None


def step_of(path: Path, owner: Owner) -> tuple[int, bool] | None:
    """The step that an entry has reached, and whether it is this owner's, by its header; None if it is damaged."""
    with suppress(OSError, *_DAMAGE), _opened(path) as file:
        facts = file.metadata() or {}
        return int(facts["step"]), owner.items() <= facts.items()
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except RuntimeError as error:  # torch opens it a second time, and says so of a file that it can't open
        raise OSError(str(error)) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from torch import uint8

    digest = blake3()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()
