"""A process of ours: ``python -m benchmarks.device.any_size.ours BUNDLE BUDGET``."""

from __future__ import annotations

import json
import sys
from functools import partial
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.device.any_size.models import WORDS as VOCABULARY
from benchmarks.device.any_size.work import DECODED, LENGTH, SHOWN, SIDE, WORDS, ms
from benchmarks.device.work import FIRST, peak_bytes
from weightpager.engine import Engine


def figures(engine: Engine) -> dict[str, float]:
    """First tokens about frames that weren't seen, and that were; tokens of an answer; switches."""
    task, *others = engine.bundle.tasks
    random = np.random.default_rng(0)

    def asked(images: list[Image.Image], words: int, tokens: int) -> float:
        text = " ".join(random.choice(VOCABULARY, words))

        def generate() -> None:
            found = engine.generate(task, text, images, max_new_tokens=tokens)
            if found.tokens != tokens:
                raise SystemExit(f"expected an answer of {tokens} tokens, found one of {found.tokens}")

        return ms(generate)

    asked([], 1, 1)
    print(FIRST, flush=True)
    first, seen, texts, decode = [], [], [], []
    for _ in range(SHOWN):
        frame = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        first.append(asked([frame], WORDS, 1))
        seen.append(asked([frame], WORDS, 1))
        decode.append((asked([frame], WORDS, 1 + DECODED) - seen[-1]) / DECODED)
        texts.append(asked([], LENGTH, 1))
    found = {
        "ms_first_token": median(first),
        "ms_seen_first_token": median(seen),
        "ms_text_first_token": median(texts),
        "decode_per_s": 1e3 / median(decode),
    }
    features = engine.report().features
    assert features is not None
    if others:
        before, there_and_back = engine.report().bytes_read, [*others, task] * SHOWN
        found["ms_switch"] = median(ms(partial(engine.activate, each)) for each in there_and_back)
        found["mib_switch"] = (engine.report().bytes_read - before) / len(there_and_back) / 2**20
    return found | {"bytes_features": features.bytes / features.kept, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    bundle, budget = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend="native", budget=budget) as engine:
        json.dump(figures(engine), sys.stdout)
