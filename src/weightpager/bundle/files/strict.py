"""`Strict`: the base of every JSON document that this project writes and reads."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from weightpager.errors import BundleFormatError

_Self = TypeVar("_Self", bound="Strict")


class Strict(BaseModel):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    @classmethod
    def read(cls: type[_Self], name: str, content: bytes) -> _Self:
        """Validate the JSON of the file ``name``.

        Raises:
            BundleFormatError: names the first field that is wrong.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "document"
            raise BundleFormatError(name, field, first["msg"], repr(first.get("input"))[:120]) from None
