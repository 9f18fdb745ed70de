"""The command line of `cgroup`: ``python -m weightpager_lab.limits``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from weightpager.config import format_size, parse_bandwidth, parse_size
from weightpager.errors import ConfigError
from weightpager_lab.limits.cgroup import Limit, LimitedRun, run_limited

_T = TypeVar("_T")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit code is the command's, 128 plus the number of a signal that ended it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    parser = _parser()
    options = parser.parse_args(given[:split])
    command = given[split + 1 :]
    if not command:
        parser.error("expected a command after --")
    try:
        run = run_limited(
            command,
            memory=options.memory,
            storage_bytes_per_s=options.storage,
            cpus=options.cpus,
            storage_path=options.storage_path,
            timeout=options.timeout,
        )
    except ConfigError as error:
        parser.error(str(error))
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(run) | {"missing": run.missing}, indent=2) + "\n")
    else:
        sys.stdout.write(run.stdout)
        sys.stderr.write(run.stderr + report(run))
    return run.exit_code if run.exit_code >= 0 else 128 - run.exit_code


def report(run: LimitedRun) -> str:
    """What held while a command ran, as lines for people."""
    ending = f"killed after {run.seconds:.2f} s, its time" if run.timed_out else f"{run.seconds:.2f} s"
    peak = "not measured" if run.peak_memory is None else format_size(run.peak_memory)
    kills = "not counted" if run.oom_kills is None else str(run.oom_kills)
    return "\n".join([
        f"exit {run.exit_code}, {ending}; peak memory with page cache: {peak}; out-of-memory kills: {kills}",
        f"  memory   {_shown(run.memory, format_size)}",
        f"  storage  {_shown(run.storage, lambda rate: f'{rate / 1e6:.1f} MB/s')}",
        f"  cpus     {_shown(run.cpus, str)}",
        "",
    ])  # fmt: skip


def _shown(limit: Limit, form: Callable[[int], str]) -> str:
    return limit.note if limit.in_force is None else f"{form(limit.in_force)} ({limit.note})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weightpager_lab.limits",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description="Run a command with limited memory (page cache included), a slower disk and fewer CPUs.",
        epilog="A limit that can't be enforced is reported as unlimited; the command runs all the same.",
    )
    parser.add_argument("--memory", type=_argument(parse_size), metavar="SIZE", help="most memory, such as 512MiB")
    parser.add_argument(
        "--storage",
        type=_argument(lambda text: int(parse_bandwidth(text))),
        metavar="RATE",
        help="most bytes read per second, such as 300MB/s",
    )
    parser.add_argument(
        "--storage-path", default=".", metavar="PATH", help="a path on the disk to slow down (default: .)"
    )
    parser.add_argument("--cpus", type=int, metavar="N", help="how many CPUs")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command after so long")
    parser.add_argument("--json", action="store_true", help="print the result, the command's output in it, as JSON")
    return parser


def _argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:

    def convert(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


if __name__ == "__main__":
    sys.exit(main())
