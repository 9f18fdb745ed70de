"""Small hand-made archives; nothing of the real ones is kept in this repository."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Literal

from weightpager_lab.samples.pins import Archive


def tarball(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def wheel(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pin(content: bytes, client: Literal["pip", "pip-sdist", "npm"] = "npm", **changes: str) -> Archive:
    fields = {"name": "thing", "version": "1.0", "licence": "none", **changes}
    return Archive(sha256=hashlib.sha256(content).hexdigest(), client=client, used_by=("chess", "poetry"), **fields)
