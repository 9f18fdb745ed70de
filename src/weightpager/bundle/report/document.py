"""`Document`: the base of what measurements write for people: reports and results, over pydantic."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")
