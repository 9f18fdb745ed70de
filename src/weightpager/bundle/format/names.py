"""Names of a bundle's files and parameters."""

from __future__ import annotations

from pathlib import PurePosixPath

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.blake3"
RESIDENT = "resident.safetensors"
REPORT = "report.json"
MODEL = "model"
TASKS = "tasks"

BASE = "base_model."
"""How the canonical name of whatever tasks share begins."""

PULLED = ".weightpager/*/versions/*/bundle"
"""Where `pull` puts signed versions: nothing else writes there."""


def private_file(task: str) -> str:
    return f"{TASKS}/{task}/private.safetensors"


def is_inside(name: str) -> bool:
    """Whether a path from a bundle's list of files stays inside the bundle."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not (name.startswith("/") or ".." in parts or "\\" in name or "\0" in name)
