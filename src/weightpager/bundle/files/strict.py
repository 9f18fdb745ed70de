"""`Strict`: the base of every JSON document that this project writes and reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")
