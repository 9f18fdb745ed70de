"""weightpager itself."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.lab.contest.rivals.pace import PacedStore
from weightpager.lab.contest.rivals.rival import DTYPE, Rival, Setting
from weightpager.store import LocalStore


class Ours(Rival):
    """An engine over the bundle.

    Args:
        setting: of the contest.
        wait: whether a switch ends when all pages are there; otherwise the model runs while they are loaded.
    """

    def __init__(self, setting: Setting, *, wait: bool = True) -> None:
        bundle = setting.bundle
        config = EngineConfig(setting.budget, dtype=DTYPE, io_threads=setting.threads, backend="torch")
        pace = setting.pace
        open_store = LocalStore if pace is None else lambda bundle: PacedStore(bundle, pace)
        self._engine = Engine(bundle, config, open_store)
        self._wait = wait
        self._files = [bundle.path / name for name in bundle.manifest.page_file_names()]

    def switch(self, task: str) -> nn.Module:
        module: nn.Module = self._engine.activate(task, wait=self._wait)
        return module

    def forget(self) -> None:
        self._engine.evict()

    def files(self, task: str) -> list[Path]:  # noqa: ARG002 - any of them may hold a page of it
        return self._files

    def weight_bytes(self) -> int:
        return self._engine.report().memory.total

    def paged_bytes(self) -> int:
        return self._engine.report().memory.arena

    def close(self) -> None:
        self._engine.close()
