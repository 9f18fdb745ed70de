"""What reads pictures among the words of `tiny`: two places a picture, 6 × 6 pixels."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

import tiny
import weightpager as wp
from weightpager.bundle.format.manifest import Pictures
from weightpager.readers.image_reader import Frame
from weightpager.readers.picture_reader import PictureReader
from weightpager.readers.tokenizer import Tokenizer

TOKEN, IMAGE, PLACES, SIDE = "<image>", 16, 2, 6

PICTURES = Pictures(blocks="shared", layers=1, token=TOKEN, token_id=IMAGE, tokens=PLACES, width=32)

PARTS = """{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}{% for part in m.content %}
{%- if part.type == 'image' %}<image>{% else %}{{ part.text }} {% endif %}{% endfor %}{% endif %}{% endfor -%}
{% if add_generation_prompt %}snow{% endif %}"""
"""Writes parts in their order."""


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def picture_reader() -> PictureReader:
    return PictureReader.of(processor().to_dict(), PICTURES)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    found = tiny.tokenizer()
    found.add_special_tokens({"eos_token": "[SEP]", "additional_special_tokens": [TOKEN]})
    found.chat_template = template
    return found


def reader(template: str | None = None) -> Tokenizer:
    return tiny.reader(tokenizer(template)).with_pictures(picture_reader())


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7, 3), np.uint8))


def content(seed: int = 0) -> bytes:
    """A file's."""
    file = BytesIO()
    noise(seed).save(file, "PNG")
    return file.getvalue()


def url(seed: int = 0) -> str:
    return f"data:image/png;base64,{base64.b64encode(content(seed)).decode()}"


def answer_of(engine: wp.Engine, task: str, text: str, frames: Sequence[Frame]) -> tuple[str, list[bytes]]:
    """What is answered, and the bits of the features."""
    answer = engine.generate(task, text, frames, max_new_tokens=4)
    reader, find = engine.reader(), engine.features(task)
    assert isinstance(reader, Tokenizer)
    assert reader.pictures is not None
    with engine.task(task):
        model = engine.model(task)
        return answer.label, [find(model, reader.pictures.read(each)).tobytes() for each in frames]
