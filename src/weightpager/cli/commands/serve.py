"""``weightpager serve``: one server, or several on a cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.options import Backend, Budget, Dtype, Rows, extra, task_names
from weightpager.config import parse_duration, parse_size
from weightpager.errors import ConfigError

if TYPE_CHECKING:
    from socket import socket

    from weightpager.engine import Engine, Models
    from weightpager.server.bundle_folder import BundleFolder
    from weightpager.server.scheduling.service import Service
    from weightpager.server.scheduling.settings import Settings


def serve_replicas(
    bundle: Path, settings: Settings, options: Mapping[str, Any], *, replicas: int, cluster: str, host: str, port: int
) -> None:
    """Serve until the process is told to end; requests under way are answered first.

    Args:
        bundle: that is served.
        settings: of each server.
        options: of each server's engine.
        replicas: how many servers there are.
        cluster: its address, "auto" or "local".
        host: to listen at.
        port: there; 0 for any free one.
    """
    with extra("ray"):
        from weightpager.ray.application import app
        from weightpager.ray.run import served
    from weightpager.server.run import told_to_end, url_of, warn_of_strangers

    warn_of_strangers(settings, host)
    application = app(bundle, replicas=replicas, settings=settings, **options)
    cpus = max(replicas, os.cpu_count() or 1)
    output.say(f"starting {replicas} servers on Ray …")
    with served(application, cluster, host, port, cpus) as bound, told_to_end():
        url = url_of(host, bound)
        output.say(f"{url}/ serves {', '.join(Bundle.open(bundle).tasks)}")
        output.next_step(f"curl {url}/replicas")
        threading.Event().wait()


def serve(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE", help="Bundle directories, or one folder of them.", show_default=False),
    ],
    budget: Budget = None,
    rows: Rows = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any free one.")] = 8000,
    uds: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Unix socket to listen at instead, for programs on this machine alone."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the token that requests must bring.")
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the admin's token; no admin routes without one.")
    ] = None,
    remote_admin: Annotated[
        bool, typer.Option("--remote-admin", help="Let the admin ask from other machines too.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="A task whose requests wait longer has its turn after the current one."
        ),
    ] = 2.0,
    linger: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a switch waits for more requests of its task.")
    ] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Texts that run together.")] = 8,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One text at a time: answers don't depend, bit for bit, on others.")
    ] = False,
    order: Annotated[
        Literal["grouped", "arrival"], typer.Option(help="Group requests by task, or take them as they come.")
    ] = "grouped",
    queue: Annotated[int, typer.Option(min=1, help="Texts that may wait; more are answered 429.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time after which a request is given up.")
    ] = 120.0,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time that requests have to finish at shutdown.")
    ] = 20.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens that one text may be continued by.")] = 1024,
    max_text_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of one text, prompts included. Default: 8192 (2048 where texts are read at once), "
            "or a task's max_length if that is more; never more than the model reads.",
        ),
    ] = None,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest body of a request, beside the pictures of prompts.")
    ] = "1MiB",
    picture_host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="Fetch pictures that prompts name by their address from this host."),
    ] = None,
    kv_reserve: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Part of the budget for KV caches; batches are kept within it.")
    ] = None,
    prefix_cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Part of the budget for beginnings of prompts, such as a system prompt or a conversation's earlier "
            "turns, which aren't read again.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where tasks run: cpu, cuda or cuda:N (not run on a GPU yet).")] = "cpu",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    real_time: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Load this task first, and never let it go.", autocompletion=task_names),
    ] = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Prefetch, between switches, what the next task probably needs.")
    ] = False,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that keeps which task ran when across restarts.")
    ] = None,
    idle: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="A bundle that nobody asks for so long, such as 5m, leaves memory; the next request wakes it.",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of servers on a Ray cluster, each with the budget; a request goes where its task is in "
            "memory. Needs `weightpager[ray]`.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Cluster for --replicas: HOST:PORT joins that one; auto, the one that `ray start` started here; "
            "local, the default, starts one.",
        ),
    ] = None,
    log: Annotated[Literal["json", "text"], typer.Option(help="Form of the log on standard error.")] = "json",
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="Least that is logged.")] = (
        "info"
    ),
) -> None:
    """Serve the tasks of bundles over HTTP; the task is the `model`. Needs `weightpager[serve]`.

    Several bundles share the budget, and their tasks are named `bundle/task`, or `task` where one alone has it. A
    folder is watched: bundles that are put there are served, and those that change are taken over.

    Tasks that write, and embeddings, answer OpenAI's clients; classification has a route of its own.

    A page at / shows what the server does; /metrics is for Prometheus, /docs lists the routes.

    Example: `weightpager serve assistant.bundle --budget 4MiB --port 8000`
    """
    with extra("serve"):
        from weightpager.server.inputs.picture_hosts import AllowedHost
        from weightpager.server.middleware import logging_to_stderr
        from weightpager.server.scheduling.settings import Policy, Settings, read_token

    settings = Settings(
        policy=Policy(patience=patience, linger=linger, batch=1 if deterministic else batch, order=order),
        queue=queue,
        timeout=timeout,
        grace=grace,
        most_new_tokens=max_new_tokens,
        most_text_tokens=max_text_tokens,
        body_bytes=parse_size(max_body, "--max-body"),
        token=read_token(token_file),
        admin_token=read_token(admin_token_file),
        remote_admin=remote_admin,
        picture_hosts=tuple(map(AllowedHost.parse, picture_host or ())),
    )
    options: dict[str, Any] = {
        "budget": budget,
        "rows": rows,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "kv_reserve": kv_reserve or 0,
        "prefix_cache": prefix_cache or 0,
        "real_time": tuple(real_time or ()),
        "prefetch": prefetch,
        "history": history,
    }
    if replicas is not None:
        if uds is not None:
            raise ConfigError("--uds: expected it without --replicas, whose servers run on any machine of a cluster")
        if len(bundles) > 1 or idle is not None:
            raise ConfigError("--replicas: expected one bundle without --idle, whose memory each server has for itself")
        serve_replicas(bundles[0], settings, options, replicas=replicas, cluster=ray or "local", host=host, port=port)
        return
    if ray is not None:
        raise ConfigError("--ray: expected it with --replicas, which says how many servers there are")
    with logging_to_stderr(log_level, as_json=log == "json"):
        _serve_here(bundles, settings, options, idle, host, port, uds)


def _serve_here(
    bundles: list[Path],
    settings: Settings,
    options: dict[str, Any],
    idle: str | None,
    host: str,
    port: int,
    uds: Path | None,
) -> None:
    """Serve from this process until it is told to end; ``options`` are the engine's."""
    with extra("serve"):
        from weightpager.server.run import listen, listen_at
        from weightpager.server.scheduling.service import Service

    with listen(host, port) if uds is None else listen_at(uds) as listening:
        seconds = None if idle is None else parse_duration(idle, "--idle")
        runs, folder = _opened(bundles, options, alone=idle is None)
        with runs:
            _run(Service(runs, settings, idle=seconds, folder=folder), bundles, host, listening, uds)


def _opened(
    bundles: list[Path], options: dict[str, Any], *, alone: bool
) -> tuple[Engine | Models, BundleFolder | None]:
    """One bundle, or several that share the budget, and the folder that they lie in if none was named itself.

    Raises:
        ConfigError: an option is for a bundle ``alone``, or a folder has none.
        WeightpagerError: a bundle can't be used, or the budget is too small.
    """
    from weightpager.engine import Engine, Models
    from weightpager.runtime.shared_budget import name_of
    from weightpager.server.bundle_folder import BundleFolder, is_folder

    folder = BundleFolder(bundles[0]) if len(bundles) == 1 and is_folder(bundles[0]) else None
    if len(bundles) == 1 and alone and folder is None:
        return Engine.from_pretrained(bundles[0], **options), None
    for name, usual in {"rows": None, "device": "cpu"}.items():
        if options.pop(name) != usual:
            raise ConfigError(f"--{name}: expected it with one bundle that stays in memory, found several, or --idle")
    states = {} if folder is None else folder.bundles()
    paths = bundles if folder is None else list(states)
    if not paths:
        raise ConfigError(f"{bundles[0]}: expected a bundle, or a folder with one at least, found none")
    if folder is not None:
        folder.know({path: name_of(path) for path in paths}, states)
    return Models.from_pretrained(paths, **options), folder


def _run(service: Service, bundles: list[Path], host: str, listening: socket, uds: Path | None) -> None:
    """Answer requests until the process is told to end."""
    from weightpager.server.presence import Presence, announced
    from weightpager.server.run import cut_off, server, told_to_end, url_of

    if uds is None:
        port = listening.getsockname()[1]
        url, serving = url_of(host, port), server(service, host=host, port=port)
    else:
        url, serving = f"unix:{uds.absolute()}", server(service, host="localhost", port=0, uds=uds)
    output.say(f"{url}{'/' if uds is None else ''} serves {', '.join(filter(service.fits, service.tasks))}")
    output.next_step(f"weightpager top {url}")
    served = ", ".join(str(bundle.absolute()) for bundle in bundles)
    presence = Presence(url=url, pid=os.getpid(), bundle=served, started=time.time())
    with told_to_end(), cut_off(service), announced(presence):
        serving.run(sockets=[listening])
