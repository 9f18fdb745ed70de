"""Types of the task file's values: what is accepted, and what is said about anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import LiteralString

from weightpager.blocks import BlockShape
from weightpager.bundle.format.manifest import FORMS
from weightpager.config import is_unicode, parse_size
from weightpager.errors import ConfigError, shown
from weightpager.machine.paths import has_directory, has_file

RecoverMethod = Literal["none", "closed-form", "finetune"]
RecoverStart = Literal["dense", "closed-form"]
Comparison = Literal["none", "dense", "all"]

_PAGE_LIMITS = (4096, 2**28)


def broken(rule: str) -> PydanticCustomError:
    """An error whose text is shown as it is."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise PydanticCustomError("expected", "a path")
    folder: Path = (info.context or {}).get("folder", Path())
    try:
        path = folder / Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a name too long, a NUL
        raise broken(f"expected a path: {error}") from None
    if not is_unicode(str(path)):
        raise broken(f"expected a path of Unicode text without lone surrogates, found {str(path)!r}")
    return path


def _file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not has_file(path):
        raise broken(f"expected a file, found none at {path}")
    return path


def _data(value: object, info: ValidationInfo) -> Path:
    """A file; for images a folder too."""
    path = _path(value, info)
    kind = info.data.get("kind")  # absent where it is wrong, which is said elsewhere
    return path if kind in FORMS and FORMS[kind].images and has_directory(path) else _file(value, info)


def _model_directory(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not has_directory(path):
        raise broken(
            f"expected a model directory, found none at {path}; a hub id must be downloaded first, "
            "for example with 'hf download ID --local-dir DIRECTORY'"
        )
    if not has_file(path / "config.json"):
        raise broken(f"expected a model directory, found no config.json in {path}")
    return path


def _block(value: object) -> BlockShape:
    if isinstance(value, BlockShape):
        return value
    try:
        return BlockShape.parse(value if isinstance(value, str) else shown(value))
    except ConfigError as error:
        raise broken(str(error).removeprefix("block: ")) from error


def _page(value: object) -> int | None:
    if value is None or value == "auto":
        return None
    size = _bytes(value, "auto or a size such as 64KiB")
    least, most = _PAGE_LIMITS
    if not least <= size <= most or size & (size - 1):
        raise PydanticCustomError("expected", "auto or a power of two from 4KiB to 256MiB")
    return size


def _strength(value: object) -> object:
    return float("inf") if value == "inf" else value


def _saliency(value: object) -> object:
    if value in ("second-moment", "block-obs"):
        raise broken(
            f"expected gradient, found {value}, which is no longer a choice; write 'saliency: gradient', or leave the "
            "line out"
        )
    return value


def _comparison(value: object) -> object:
    return ("all" if value else "none") if isinstance(value, bool) else value


def _size(value: object) -> int | None:
    return None if value is None else _bytes(value, "a size such as 8MiB")


def _bytes(value: object, expected: LiteralString) -> int:
    try:
        return parse_size(value if isinstance(value, (int, str)) else shown(value))
    except (ConfigError, ValueError) as error:  # Python writes no number of thousands of digits
        raise PydanticCustomError("expected", expected) from error


def _text(pattern: str, *others: str, **bounds: float) -> WithJsonSchema:
    """For editors: a text of this form, or a value of another type."""
    return WithJsonSchema({"type": ["string", *others] if others else "string", "pattern": pattern, **bounds})


_SIZE = r"\d+(\.\d+)? *([KMGkmg]?[Ii]?[Bb])?"

ExistingFile = Annotated[Path, BeforeValidator(_file)]
Data = Annotated[Path, BeforeValidator(_data)]
ModelDirectory = Annotated[Path, BeforeValidator(_model_directory)]
Block = Annotated[BlockShape, BeforeValidator(_block), _text(r"^\d+x\d+$")]
Page = Annotated[int | None, BeforeValidator(_page), _text(rf"^(auto|{_SIZE})$", "integer", "null")]
Size = Annotated[int | None, BeforeValidator(_size), _text(rf"^{_SIZE}$", "integer", "null")]
Strength = Annotated[float, BeforeValidator(_strength), Field(ge=0), _text("^inf$", "number", minimum=0)]
Saliency = Annotated[Literal["gradient"], BeforeValidator(_saliency)]
Rows = Literal["on-demand", "resident"]
ExpertUnit = Literal["whole", "blocks"]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
"""As a manifest takes it; pydantic doesn't know msgspec's bounds."""

Column = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Length = Annotated[int, Field(ge=8, le=2**20)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Frozen(BaseModel):
    """Unknown keys refused; no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Compare = Annotated[
    Comparison, BeforeValidator(_comparison), WithJsonSchema({"enum": [*get_args(Comparison), True, False]})
]
"""True is all, False is none."""
