#!/usr/bin/env python3
"""same_answers.py JSON JSON: fail unless ``weightpager run --json`` has twice the same labels, equally sure."""

import json
import sys

first, second = (json.loads(text)["predictions"] for text in sys.argv[1:])
same = len(first) == len(second) and all(
    one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-2
    for one, other in zip(first, second, strict=True)
)
sys.exit(None if same else f"expected the same answers, found\n{first}\n{second}")
