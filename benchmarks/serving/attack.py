"""32 honest clients of a server beside some that mean no good: how long these make the others wait, and what memory.

Long prompts: one client sends 8,000 tokens again and again, another 131,002. Images: a client sends 128 images of
8.4 megapixels in one request, again and again; they are of one colour, so that a request has but some 190 kB.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import torch
import typer
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from benchmarks.serving.clients import plain_metrics, serving
from weightpager.bundle import Bundle
from weightpager.compiler.pipeline import compile as compile_bundle
from weightpager.config import cache_dir, format_size
from weightpager.server.scheduling.settings import Policy
from weightpager_lab.synthetic_bundle import bundle_of, long_context
from weightpager_lab.timing import spread

HONEST = 32
LONG = (8_000, 131_002)
IMAGES = 128
_ANSWERED = 200

Kind = Literal["prompts", "images"]
Body = dict[str, Any]


@dataclass
class Tally:
    """Of the honest clients: seconds to an answer, and what else came; of the others, how many answers by status."""

    seconds: list[float] = field(default_factory=list)
    other: dict[int, int] = field(default_factory=dict)
    attackers: dict[int, int] = field(default_factory=dict)
    most_bytes: int = 0
    unready: int = 0


@dataclass(frozen=True)
class AttackRow:
    """One run; ``bound`` is on how long a request waits until it begins, by the policy and what the server measured."""

    what: str
    seconds: float
    answered: int
    other: dict[int, int]
    p50: float
    p99: float
    longest: float
    rss_above_idle: int
    attackers: dict[int, int]
    unready: int
    slowest_step: float
    bound: float
    exit_code: int | None
    exit_seconds: float


def attack(kind: Kind, seconds: float, timeout: float, source: Path | None, seed: int) -> AttackRow:
    """Serve a bundle to 32 honest clients and some others for so long.

    Args:
        kind: of attack.
        seconds: that clients go on asking.
        timeout: of the server.
        source: checkout whose server it is; this one if None.
        seed: of what is asked.
    """
    bundle, honest, others = _prompts(seed) if kind == "prompts" else _images(seed)
    options = {"--timeout": timeout, "--grace": 5, "--max-body": "4MiB", "--log-level": "error"}
    with serving(bundle, options, source) as (process, url):
        idle = _rss(process.pid)
        tally = asyncio.run(_all(url, honest, others, seconds, process.pid))
        metrics = plain_metrics(url)
        process.terminate()
        started = time.monotonic()
        code = _ended(process)
        return _row(kind, seconds, tally, idle, metrics, len(bundle.tasks), code, time.monotonic() - started)


def _row(
    kind: Kind,
    seconds: float,
    tally: Tally,
    idle: int,
    metrics: dict[str, float],
    tasks: int,
    code: int | None,
    ended: float,
) -> AttackRow:
    times = spread(tally.seconds, "lower") or dict.fromkeys(("p50", "p99"), math.inf)
    step = metrics.get("weightpager_slowest_batch_seconds", 0.0)
    return AttackRow(
        what=kind,
        seconds=seconds,
        answered=len(tally.seconds),
        other=tally.other,
        p50=times["p50"],
        p99=times["p99"],
        longest=max(tally.seconds, default=math.inf),
        rss_above_idle=tally.most_bytes - idle,
        attackers=tally.attackers,
        unready=tally.unready,
        slowest_step=step,
        bound=_bound(kind, tasks, step, metrics.get("weightpager_slowest_switch_seconds", 0.0)),
        exit_code=code,
        exit_seconds=ended,
    )


def line(row: AttackRow) -> str:
    return (
        f"{row.what}: {row.answered} honest answers, others {row.other}; p50 {row.p50:.2f} s, p99 {row.p99:.2f} s, "
        f"longest {row.longest:.2f} s (may begin after {row.bound:.2f} s); "
        f"{format_size(max(0, row.rss_above_idle))} above idle; slowest step {row.slowest_step:.2f} s; attackers got "
        f"{row.attackers}; not ready {row.unready} times; SIGTERM: exit code {row.exit_code} after "
        f"{row.exit_seconds:.1f} s"
    )


def _bound(kind: Kind, tasks: int, step: float, switch: float) -> float:
    """On an honest request's wait, if all others are before it in its own task: each has one step, eight to a batch."""
    policy = Policy()
    others = HONEST - 1 + (IMAGES if kind == "images" else 0)
    ahead = -(-others // policy.batch) + (len(LONG) if kind == "prompts" else 0)
    return policy.longest_wait(tasks, step, switch, ahead, heavy=kind == "prompts")


async def _all(url: str, honest: Sequence[Sequence[Body]], others: Sequence[Body], seconds: float, pid: int) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=400, trust_env=False, limits=limits) as session:
        asking = [_client(session, bodies, end, tally) for bodies in honest]
        attacking = [_attacker(session, body, end, tally) for body in others]
        await asyncio.gather(*asking, *attacking, _watch(session, end, tally, pid))
    return tally


async def _client(session: httpx.AsyncClient, bodies: Sequence[Body], end: float, tally: Tally) -> None:
    await asyncio.sleep(2.0)  # the others are there first
    for body in bodies:
        if time.monotonic() >= end:
            return
        start = time.monotonic()
        answer = await session.post(body["path"], json=body["body"])
        if answer.status_code == _ANSWERED:
            tally.seconds.append(time.monotonic() - start)
        else:
            tally.other[answer.status_code] = tally.other.get(answer.status_code, 0) + 1
        await asyncio.sleep(0.2)


async def _attacker(session: httpx.AsyncClient, body: Body, end: float, tally: Tally) -> None:
    while (left := end - time.monotonic()) > 0:
        try:
            answer = await session.post(body["path"], json=body["body"], timeout=left)
        except httpx.TimeoutException:
            status = 0  # still at it when the clients went
        else:
            status = answer.status_code
        tally.attackers[status] = tally.attackers.get(status, 0) + 1
        await asyncio.sleep(0.05)


async def _watch(session: httpx.AsyncClient, end: float, tally: Tally, pid: int) -> None:
    while time.monotonic() < end:
        tally.most_bytes = max(tally.most_bytes, _rss(pid))
        tally.unready += (await session.get("/ready")).status_code != _ANSWERED
        await asyncio.sleep(0.1)


def _prompts(seed: int) -> tuple[Bundle, list[list[Body]], list[Body]]:
    bundle = bundle_of(long_context(), cache_dir() / "benchmarks" / "serving", typer.echo)
    tasks, drawn = list(bundle.tasks), random.Random(seed)

    def body(task: str, tokens: int) -> Body:
        return {"model": task, "prompt": drawn.choices(range(3, 2000), k=tokens), "max_tokens": 1, "temperature": 0}

    honest = []
    for _ in range(HONEST):
        bodies = [body(drawn.choice(tasks), drawn.randint(1, 32)) for _ in range(5000)]
        honest.append([{"path": "/v1/completions", "body": one} for one in bodies])
    return bundle, honest, [{"path": "/v1/completions", "body": body(tasks[0], tokens)} for tokens in LONG]


def _images(seed: int) -> tuple[Bundle, list[list[Body]], list[Body]]:
    bundle = _camera()
    tasks, drawn = list(bundle.tasks), random.Random(seed)
    small = [_url(Image.new("RGB", (32, 32), (number * 30, 99, 200 - number * 20))) for number in range(8)]

    def body(task: str, images: list[str]) -> Body:
        return {"path": "/v1/classifications", "body": {"model": task, "input": images}}

    honest = [[body(drawn.choice(tasks), [drawn.choice(small)]) for _ in range(5000)] for _ in range(HONEST)]
    large = _url(Image.new("L", (3840, 2184), 128), palette=True)
    return bundle, honest, [body(tasks[0], [large] * IMAGES)]


def _url(image: Image.Image, *, palette: bool = False) -> str:
    content = io.BytesIO()
    (image.convert("1") if palette else image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _ended(process: subprocess.Popen[str]) -> int | None:
    """The exit code; None if it takes longer than a minute."""
    try:
        return int(process.wait(timeout=60))
    except subprocess.TimeoutExpired:
        return None


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _camera() -> Bundle:
    """Two tasks on images of one colour, by a small ViT; compiled when it is wanted first."""
    folder = cache_dir() / "benchmarks" / "serving-images"
    out = folder / "camera.bundle"
    if not out.is_dir():
        typer.echo("compile camera.bundle …")
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "vit")
        ViTImageProcessor().save_pretrained(folder / "vit")
        training = {"calibration": {"items": 16, "batch": 8}, "training": {"steps": 8, "batch": 8}}
        tasks = {
            "warm": _colours(folder / "warm", ("red", "blue")),
            "bright": _colours(folder / "bright", ("white", "black")),
        }
        compile_bundle({"model": str(folder / "vit"), "sparsity": 0.6, **training, "tasks": tasks}, out)
    return Bundle.open(out)


def _colours(folder: Path, colours: Sequence[str]) -> dict[str, str]:
    for split in ("train", "eval"):
        for colour in colours:
            (folder / split / colour).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                Image.new("RGB", (32 + number, 32), colour).save(folder / split / colour / f"{number}.png")
    return {"kind": "image-classification", "train": str(folder / "train"), "eval": str(folder / "eval")}
