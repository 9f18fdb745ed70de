"""``preprocessor_config.json``: how images become a model's pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Annotated[int, Field(ge=1)]  # whoever loads the processor bounds those that it has, unstated ones too
Sides = dict[Literal["height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"], Side | None]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


class ImageSettings(BaseModel):
    """Settings of all image processors. Further ones are kept, and tried on a blank image."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    image_processor_type: Annotated[str, Field(pattern=r"^\w{1,100}ImageProcessor(Fast|Pil)?$")] | None = None
    feature_extractor_type: Annotated[str, Field(pattern=r"^\w{1,100}FeatureExtractor$")] | None = None
    size: Side | Sides | None = None
    crop_size: Side | Sides | None = None
    pad_size: Side | Sides | None = None
    size_divisor: Side | None = None
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    rescale_factor: Annotated[float, Field(gt=0, le=1e6)] | None = None
    crop_pct: Annotated[float, Field(ge=1e-2, le=1)] | None = None
    image_mean: Mean | Annotated[list[Mean], Field(min_length=1, max_length=4)] | None = None
    image_std: Deviation | Annotated[list[Deviation], Field(min_length=1, max_length=4)] | None = None
    data_format: Literal["channels_first"] | None = None
    input_data_format: Literal["channels_first", "channels_last"] | None = None

    @model_validator(mode="after")
    def _choices(self) -> ImageSettings:
        for name, value in (self.model_extra or {}).items():
            if name.startswith("do_") and not isinstance(value, (bool, type(None))):
                raise ValueError(f"true or false as {name}, got {value!r}"[:200])
        return self
