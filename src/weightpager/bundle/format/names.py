"""Names of a bundle's files."""

from __future__ import annotations

from pathlib import PurePosixPath

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.blake3"
RESIDENT = "resident.safetensors"
REPORT = "report.json"
MODEL = "model"

PULLED = ".weightpager/*/versions/*/bundle"
"""Where `pull` puts signed versions: nothing else writes there."""


def private_file(task: str) -> str:
    return f"tasks/{task}/private.safetensors"


def adapter_files(task: str) -> tuple[str, str]:
    """Where a task's low-rank parts lie: the configuration and the tensors."""
    return f"tasks/{task}/adapter_config.json", f"tasks/{task}/adapter_model.safetensors"


def is_inside(name: str) -> bool:
    """Whether a path from a bundle's list of files stays inside the bundle."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not (name.startswith("/") or ".." in parts or "\\" in name or "\0" in name)
