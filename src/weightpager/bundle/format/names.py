"""Names of a bundle's files."""

from __future__ import annotations

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.blake3"
RESIDENT = "resident.safetensors"
REPORT = "report.json"
MODEL = "model"


def private_file(task: str) -> str:
    """Where a task's private parameters lie."""
    return f"tasks/{task}/private.safetensors"
