"""Rotary positions in a configuration: one object, or one for each type of layer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, le=1e12)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Factors = Annotated[list[Positive], Field(min_length=1, max_length=2**10)]

KEYS = ("rope_scaling", "rope_parameters")
"""What configurations of transformers 4 and 5 call it."""


class RopeSettings(BaseModel):
    """What transformers reads when a module is built, or only when a text is long."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    rope_type: Annotated[str, Field(max_length=64)] | None = None
    type: Annotated[str, Field(max_length=64)] | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    original_max_position_embeddings: Tokens | None = None
    max_position_embeddings: Tokens | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    mscale: Annotated[float, Field(ge=0, le=1e6)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0, le=1e6)] | None = None
    truncate: bool | None = None
    short_factor: Factors | None = None
    long_factor: Factors | None = None

    @model_validator(mode="after")
    def _alike(self) -> RopeSettings:
        if self.short_factor is not None and len(self.short_factor) != len(self.long_factor or ()):
            raise ValueError("a long_factor as long as short_factor")
        return self


def rope_of(value: Any) -> dict[str, Any]:
    """The rotary settings in a configuration's value, by type of layer; by ``""`` where one object is for all.

    Args:
        value: an object.
    """
    each = {layers: inner for layers, inner in value.items() if isinstance(inner, dict)}
    return each if each and len(each) == len(value) else {"": value}
