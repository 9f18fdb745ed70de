"""The dense model in transformers, in bfloat16: ``python -m benchmarks.device.questions.dense MODEL MOST FRAMES``.

Nothing of ours is loaded: it would count in the process's memory.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from benchmarks.device.questions.work import Question, read_frames, work

if __name__ == "__main__":
    folder, most, file = sys.argv[1:]
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.inference_mode()
    def answer(question: Question, tokens: int) -> str:
        with Image.open(question.image) as image:
            text = f"{processor.image_token}{question.prompt}"
            inputs = processor(images=image.convert("RGB"), text=text, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return str(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    @torch.inference_mode()
    def grow(ids: Any) -> Iterator[int]:
        given, cache = torch.from_numpy(ids)[None], DynamicCache(config=model.config.get_text_config())
        while True:
            logits = model(input_ids=given, **{argument: cache}, use_cache=True).logits
            given = logits[:, -1:].argmax(-1)
            yield int(given)

    work(answer, int(most), grow, model.config.text_config.vocab_size, read_frames(Path(file)))
