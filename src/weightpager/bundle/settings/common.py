"""Settings that transformers looks for in any configuration, whether its class knows them or not."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Tokens = Annotated[int, Field(ge=0, le=2**24)]


class CommonSettings(BaseModel):
    """Settings whose types a configuration class checks only if it declares them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    sliding_window: Tokens | None = None
    attention_chunk_size: Tokens | None = None
    original_max_position_embeddings: Tokens | None = None
    layer_types: Annotated[list[str], Field(max_length=2**9)] | None = None
    num_kv_shared_layers: Annotated[int, Field(ge=0, le=2**9)] | None = None
    is_decoder: bool | None = None
    use_cache: bool | None = None
    tie_word_embeddings: bool | None = None
