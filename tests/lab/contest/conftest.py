"""A bundle for contests about pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_once import made_once
from same_everywhere import blocks_by_lot


@pytest.fixture(scope="session")
def driver_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks of `watcher_bundle` in int8, each with pages of its own in the language model."""

    def make(folder: Path) -> None:
        import tiny_llava
        import weightpager as wp

        content = tiny_llava.watcher(folder, dtype="int8", alignment=0.0, sparsity=0.6)
        with blocks_by_lot():
            wp.compile(content, out=folder / "driver.bundle")

    return made_once(tmp_path_factory, "driver", make) / "driver.bundle"
