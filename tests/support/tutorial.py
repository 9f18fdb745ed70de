"""The tutorial's folder, filled so that its commands take seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

import tiny

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")


def fill(folder: Path) -> None:
    """With a tiny model, a third task, a trace, and few steps; the samples are those that the page quotes."""
    tiny.bert(folder / "model")
    (sample,) = re.findall(r"^```json\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)
    assert json.loads(sample) in [json.loads(line) for line in (folder / "spam.train.jsonl").read_text().splitlines()]
    visit = {"task": "spam", "time": 12.5}
    assert json.dumps(visit) in TUTORIAL
    visits = (json.dumps({"task": ("spam", "places")[time % 2], "time": time}) for time in range(20))
    (folder / "day.jsonl").write_text("\n".join(visits))
    with (folder / "tasks.yaml").open("a") as file:
        file.write("\ntraining: {steps: 4, batch: 4}\nblock: 8x8\npage: 4KiB\n")
    tasks = {"animal": tiny.classification(folder, "animal", {"cat": ["cat"], "dog": ["dog"]})}
    more = {"model": "model", "tasks": tasks, "training": {"steps": 4, "batch": 4}}
    (folder / "more.yaml").write_text(yaml.safe_dump(more))
