"""An export in a process of its own.

While torch.export traces, all of a process's threads see that something is traced, and transformers' modules take other
ways: their outputs may differ in the last bits. So nothing is traced beside an engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from tempfile import TemporaryDirectory

from transformers import AutoConfig, PretrainedConfig

from weightpager.bundle import TaskKind
from weightpager.compiler.graph.export import export_graph
from weightpager.errors import NotExportableError
from weightpager.graph import write_graph

_START = """
import json, sys
given = json.loads(sys.stdin.readline())
sys.path[:] = given["path"]
from weightpager.compiler.graph.apart import serve
serve(given)
"""
"""With this process's path, so that it finds the same packages."""

_NO_GRAPH = 3
"""The status of a process that says why there is no graph."""


def export_apart(config: PretrainedConfig, kind: TaskKind, image: tuple[int, int, int] | None) -> bytes:
    """The content of a graph's file; arguments and errors are those of `export_graph`.

    Raises:
        RuntimeError: the process failed; says how.
    """
    with TemporaryDirectory(prefix="weightpager-") as folder:
        config.save_pretrained(folder)
        given = {"path": sys.path, "folder": folder, "kind": kind, "image": image}
        command = [sys.executable, "-c", _START]
        ran = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, check=False)  # noqa: S603
    if ran.returncode == _NO_GRAPH:
        raise NotExportableError(ran.stdout.decode())
    if ran.returncode != 0:
        raise RuntimeError(f"the process that exports graphs ended with {ran.returncode}: {ran.stderr.decode()[-400:]}")
    return ran.stdout


def serve(given: dict[str, object]) -> None:
    """Write the content of a graph's file to the standard output, or why there is none."""
    config = AutoConfig.from_pretrained(given["folder"], local_files_only=True, trust_remote_code=False)
    image = given["image"]
    try:
        found = write_graph(export_graph(config, given["kind"], None if image is None else tuple(image)))  # type: ignore[arg-type]
    except NotExportableError as error:
        sys.stdout.write(str(error))
        sys.exit(_NO_GRAPH)
    sys.stdout.buffer.write(found)
