"""``generation_config.json``: how a model's decoders go on unless told otherwise."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Word = Annotated[int, Field(ge=0, lt=2**26)]


class GenerationSettings(BaseModel):
    """What a bundle may state. Other settings of transformers would take more memory, more time or foreign code."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    bos_token_id: Word | None = None
    eos_token_id: Word | Annotated[list[Word], Field(min_length=1, max_length=256)] | None = None
    pad_token_id: Word | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**26)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None

    def stated(self) -> dict[str, Any]:
        """The stated values; floats stay floats, since transformers refuses integers in their place."""
        return self.model_dump(exclude_none=True)


GENERATION_KEYS = tuple(GenerationSettings.model_fields)
