"""Whether two compiles made the same bundle: every file, but what a report says of times and of memory."""

from __future__ import annotations

import json
from pathlib import Path

_OF_THE_RUN = ("seconds", "peak_memory", "memory_bound")


def content(bundle: Path) -> dict[str, object]:
    """A bundle's files by path; without hashes that depend on the report's."""
    found: dict[str, object] = {
        str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()
    }
    del found["manifest.blake3"]
    report, manifest = (json.loads((bundle / name).read_text()) for name in ("report.json", "manifest.json"))
    del manifest["files"]["report.json"]
    kept = {name: value for name, value in report.items() if name not in _OF_THE_RUN}
    return found | {"report.json": kept, "manifest.json": manifest}


def assert_same(ours: Path, theirs: Path) -> None:
    """Compare two bundles; names the files that differ."""
    one, other = content(ours), content(theirs)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
