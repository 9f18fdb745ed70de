"""A build backend that runs nothing from the source tree it is given.

``pip download`` asks every source distribution for its metadata, which executes ``setup.py``. Before it asks, we put
a copy of this file in place of ``setuptools.build_meta``: it answers from the ``PKG-INFO`` that every source
distribution carries. It runs alone in pip's child process, so it imports the standard library only.
"""

from __future__ import annotations

import sys
from email import message_from_bytes
from pathlib import Path

# pip names the backend of a project without pyproject.toml "setuptools.build_meta:__legacy__".
__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:  # noqa: ARG001 - PEP 517 signature
    """What a build would need: nothing, since none takes place."""
    return []


def prepare_metadata_for_build_wheel(
    metadata_directory: str,
    config_settings: object = None,  # noqa: ARG001 - PEP 517 signature
) -> str:
    """Copies the working directory's PKG-INFO to a ``.dist-info`` directory and returns that directory's name."""
    text = Path("PKG-INFO").read_bytes()
    fields = message_from_bytes(text)
    info = Path(metadata_directory, f"{fields['Name']}-{fields['Version']}.dist-info")
    info.mkdir()
    (info / "METADATA").write_bytes(text)
    return info.name
