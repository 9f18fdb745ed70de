"""A job in a worker's process: take the driver's surroundings, unpack, work, pack what was found."""

from __future__ import annotations

import io
import os
import pickle
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from ray import cloudpickle

import weightpager
from weightpager.compiler.resume.identities import own_code
from weightpager.compiler.training.device import Arithmetic
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.kernels import isa
from weightpager.kernels.torch.kept_blocks import products

Bytes = npt.NDArray[np.uint8]
Place = TypeVar("Place")

_LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Parcel(Generic[Place]):
    """A pickled object, without what its tensors hold.

    Attributes:
        pickled: the rest of the object.
        places: the places where the bytes of each of its tensors' storages are.
        starts: each storage's address modulo 64. The copy gets the same one, since kernels round differently where
            values begin elsewhere.
    """

    pickled: bytes
    places: Sequence[Place]
    starts: Sequence[int]
    bytes: int


def pack(found: Any, put: Callable[[Bytes], Place]) -> Parcel[Place]:
    """Take an object apart; storages that tensors share stay shared.

    Args:
        found: to pickle; its tensors are on the CPU.
        put: takes a storage's bytes, which may change later, and says where they are from then on.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(found)  # type: ignore[no-untyped-call]
    contents = [_content(storage) for storage in pickler.storages]
    starts = [storage.data_ptr() % _LINE for storage in pickler.storages]
    return Parcel(file.getvalue(), [put(content) for content in contents], starts, sum(c.nbytes for c in contents))


def unpack(parcel: Parcel[Any], contents: Sequence[Bytes]) -> Any:
    """The object again, over copies of its storages' contents."""
    storages = [_storage(content, start) for content, start in zip(contents, parcel.starts, strict=True)]
    return _Unpickler(io.BytesIO(parcel.pickled), storages).load()


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        self.storages: list[torch.UntypedStorage] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, found: Any) -> tuple[int, torch.dtype] | None:
        if not isinstance(found, torch.storage.TypedStorage):
            return None
        storage = found._untyped_storage
        number = self._numbers.setdefault(storage.data_ptr() or -id(storage), len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        return number, found.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: Sequence[torch.UntypedStorage]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, found: tuple[int, torch.dtype]) -> torch.storage.TypedStorage:
        number, dtype = found
        typed: Any = torch.storage.TypedStorage  # untyped, in mypy's sense
        return cast(torch.storage.TypedStorage, typed(wrap_storage=self._storages[number], dtype=dtype, _internal=True))


def _content(storage: torch.UntypedStorage) -> Bytes:
    """A storage's bytes, not copied."""
    content: Bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return content


def _storage(content: Bytes, start: int) -> torch.UntypedStorage:
    """A storage of its own with these bytes, which begins at ``start`` in a cache line."""
    room = np.empty(content.nbytes + _LINE, np.uint8)
    first = (start - room.ctypes.data) % _LINE
    aligned = room[first : first + content.nbytes]
    aligned[:] = content
    return torch.from_numpy(aligned).untyped_storage()


_PREFIXES = (
    "ATEN_", "BLIS_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TOKENIZERS_", "TORCH_",
    "TRANSFORMERS_", "WEIGHTPAGER_",
)  # fmt: skip

_SECRETS = ("_KEY", "_SECRET", "_TOKEN")
"""Ends of the names of variables that stay here: Ray shows a worker's variables to whoever looks at the cluster."""


@dataclass(frozen=True)
class Surroundings:
    """The settings of one process.

    Attributes:
        processor: what torch uses of the processor.
    """

    versions: Mapping[str, str]
    processor: str
    arithmetic: Arithmetic

    @classmethod
    def here(cls) -> Surroundings:
        return cls(_versions(), _processor(), Arithmetic.here())

    def take(self, node: str) -> None:
        """Have this process, on ``node``, compute as the other one does. Raises `ConfigError` of other versions."""
        here = _versions()
        if here != self.versions:
            other = [name for name, version in self.versions.items() if here.get(name) != version]
            expected = ", ".join(f"{name} {self.versions[name]}" for name in other)
            found = ", ".join(f"{name} {here.get(name)}" for name in other)
            raise ConfigError(
                f"--ray: expected {expected} on every machine of the cluster, as where the compile was started, "
                f"found {found} on {node}; install the same there"
            )
        self.arithmetic.take()


def environment() -> dict[str, str]:
    """Variables of this process's environment that libraries which compute look at."""
    names = [name for name in os.environ if name.startswith(_PREFIXES) and not name.endswith(_SECRETS)]
    return {name: os.environ[name] for name in names}


@cache
def _versions() -> dict[str, str]:
    packages = (weightpager, torch, transformers, tokenizers, np)
    return {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in packages},
        "weightpager's code": own_code()[:12],
    }


def _processor() -> str:
    kernels = f"kernels for {isa()} and {(*products(), 'none')[0]}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {kernels}"


_EVERY = 0.5
"""Seconds between two lines on the board."""


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        steps: the last progress that was told of it; None if nothing was.
        processor: the processor of the machine that it ran on.
    """

    value: Parcel[Bytes]
    seconds: float
    steps: tuple[int, int] | None
    processor: str

    def unpacked(self) -> Any:
        return unpack(self.value, self.value.places)


@dataclass(frozen=True)
class Failed:
    """An error that weightpager raises on purpose, in parts, since not all can be pickled."""

    kind: type[WeightpagerError]
    arguments: tuple[Any, ...]
    fields: dict[str, Any]

    @classmethod
    def of(cls, error: WeightpagerError) -> Failed:
        return cls(type(error), error.args, dict(vars(error)))

    def error(self) -> WeightpagerError:
        error = self.kind.__new__(self.kind)
        error.args = self.arguments
        vars(error).update(self.fields)
        return error


@dataclass
class _ToldSteps:
    """Notes steps on the board, at most twice a second."""

    board: Any
    number: int
    last: tuple[int, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, total: int) -> None:
        self.last, now = (done, total), time.monotonic()
        if now - self._since >= _EVERY:
            self._since = now
            self.board.tell.remote(self.number, done, total)


def ready() -> None:
    """Nothing; a worker that was asked has imported all that jobs need."""


def work(
    parcel: Parcel[int | Bytes], surroundings: Surroundings, board: Any, number: int, *contents: Bytes
) -> JobResult | Failed:
    """Do a job; ``contents`` are of its tensors' storages that aren't in the parcel, ``number`` is its on the board."""
    start, told = time.perf_counter(), _ToldSteps(board, number)
    try:
        surroundings.take(socket.gethostname())
        all_contents = [contents[place] if isinstance(place, int) else place for place in parcel.places]
        job: Callable[[_ToldSteps], Any] = unpack(parcel, all_contents)
        value = job(told)
    except WeightpagerError as error:
        return Failed.of(error)
    seconds = time.perf_counter() - start
    return JobResult(pack(value, lambda content: content.copy()), seconds, told.last, Surroundings.here().processor)
