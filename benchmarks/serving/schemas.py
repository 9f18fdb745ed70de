"""What keeping to a JSON schema costs: answers with and without one, in turns, by a server in this process.

    python -m benchmarks.serving.schemas bundle --rounds 5

Every answer by a schema is checked. A free answer has as many tokens as the bound one before it, so that both read as
much; the time a token is that of a whole request over its tokens. Then come the extra's own costs, in a fresh process:
memory and time of its import, of the vocabulary, of compiling a schema and of a mask.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import httpx
import jsonschema
import numpy as np
import typer

from benchmarks.report.tables import table
from weightpager.answers.grammar import Grammars
from weightpager.bundle import Bundle
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.settings import CONFIG
from weightpager.engine import Engine
from weightpager.readers.tokenizer import open_tokenizer
from weightpager.server.run import listen, server
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings

SCHEMAS: dict[str, dict[str, Any]] = {
    "a class": {"enum": ["sport", "politics", "science", "something else"]},
    "a record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
            "address": {
                "type": "object",
                "properties": {
                    "street": {"type": "string", "maxLength": 30},
                    "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                },
                "required": ["street", "zip"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "age", "colours", "address"],
        "additionalProperties": False,
    },
    "a list of texts": {
        "type": "array", "items": {"type": "string", "minLength": 20, "maxLength": 60}, "minItems": 4, "maxItems": 4,
    },
}  # fmt: skip
_ASKED = "Tell me about a person and where they live, as JSON."


@contextmanager
def _serving(bundle: Path) -> Iterator[str]:
    service = Service(Engine.from_pretrained(bundle), Settings())
    with listen("127.0.0.1", 0) as listening:
        serving = server(service, host="127.0.0.1", port=0)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/completions"
        finally:
            serving.should_exit = True
            thread.join()


def _asked(client: httpx.Client, url: str, **fields: Any) -> tuple[Any, float]:
    """An answer, and milliseconds of each of its tokens."""
    start = time.perf_counter()
    found = client.post(url, json={"prompt": _ASKED, **fields}).raise_for_status().json()
    return found, 1e3 * (time.perf_counter() - start) / found["usage"]["completion_tokens"]


def _compared(url: str, task: str, rounds: int) -> list[list[str]]:
    rows, ended, answers = list[list[str]](), 0, 0
    never = dict.fromkeys(("0", "1", "2"), -100)  # what ends a text, so that both are of one length
    with httpx.Client(timeout=300, trust_env=False) as client:
        for name, schema in SCHEMAS.items():
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            took: list[tuple[float, float]] = []
            tokens = list[int]()
            for number in range(rounds + 1):
                given = {"model": task, "temperature": 1, "seed": number}
                found, bound = _asked(client, url, **given, max_tokens=400, response_format=form)
                choice = found["choices"][0]
                answers += 1
                if choice["finish_reason"] == "stop":
                    jsonschema.validate(json.loads(choice["text"]), schema)
                    ended += 1
                if number:  # the first one reads the vocabulary
                    tokens.append(found["usage"]["completion_tokens"])
                    _, free = _asked(client, url, **given, max_tokens=tokens[-1], logit_bias=never)
                    took.append((free, bound))
            figures = [statistics.median(each) for each in zip(*took, strict=True)]
            ratio = statistics.median(bound / free for free, bound in took)
            rows.append([name, f"{statistics.median(tokens):g}", *(f"{each:.2f}" for each in figures), f"{ratio:.3f}"])
    rows.append([f"{ended} of {answers} ended, all of them valid", *[""] * 4])
    return rows


def _resident() -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def _own_costs(bundle: Path) -> Iterator[str]:
    """What the extra takes in a process that has imported nothing of it."""
    opened = Bundle.open(bundle)
    tokenizer, words = open_tokenizer(opened), int(json.loads((model_dir(opened) / CONFIG).read_bytes())["vocab_size"])
    steps: dict[str, Callable[[], Any]] = {
        "import": partial(import_module, "llguidance"),
        "vocabulary": partial(Grammars, tokenizer, words),
    }
    for what, step in steps.items():
        before, start = _resident(), time.perf_counter()
        grammars: Any = step()
        yield f"{what}: {1e3 * (time.perf_counter() - start):.0f} ms, {_resident() - before:.1f} MiB"
    for name, schema in SCHEMAS.items():
        compiles, masks = list[float](), list[float]()
        for number in range(20):
            start = time.perf_counter()
            guide = grammars.compiled(schema).begin(())
            compiles.append(1e3 * (time.perf_counter() - start))
            random = np.random.default_rng(number)
            while not guide.complete:
                start = time.perf_counter()
                allowed = np.flatnonzero(guide.allowed())
                masks.append(1e3 * (time.perf_counter() - start))
                guide.take(int(random.choice(allowed)))
        middle, most = statistics.median(masks), statistics.quantiles(masks, n=100)[-1]
        yield f"{name}: compile {statistics.median(compiles):.2f} ms; mask {middle:.3f} ms, 99 %: {most:.3f} ms"


def main(
    bundle: Annotated[Path, typer.Argument(help="With tasks that write, and a tokenizer of bytes.")],
    rounds: Annotated[int, typer.Option(help="Pairs of answers for each schema.")] = 5,
    own: Annotated[bool, typer.Option(help="Measure the extra's own costs alone.")] = False,
) -> None:
    """Measure what a schema costs."""
    if own:
        typer.echo("\n".join(_own_costs(bundle)))
        return
    task = next(task.name for task in Bundle.open(bundle).tasks.values() if task.writes)
    with _serving(bundle) as url:
        rows = _compared(url, task, rounds)
    typer.echo(table(["schema", "tokens", "free, ms a token", "bound, ms a token", "bound over free"], rows))
    subprocess.run([sys.executable, "-m", "benchmarks.serving.schemas", str(bundle), "--own"], check=True)


if __name__ == "__main__":
    typer.run(main)
