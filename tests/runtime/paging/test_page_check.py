"""Repairs whose storage fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from weightpager.errors import StoreError
from weightpager.machine.storage import DirectFile
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.paging.page_check import PageCheck
from weightpager.runtime.planning.pages import ABSENT

PAGE = 8192


def test_a_read_that_fails_in_its_middle_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pages").write_bytes(bytes(PAGE))
    file, preadv = DirectFile(tmp_path / "pages", direct=False), os.preadv

    def part_of(descriptor: int, into: Sequence[memoryview], offset: int) -> int:
        if offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, [into[0][:4096]], offset)

    def read(_page: int, into: Sequence[memoryview]) -> None:
        try:
            file.read(into, 0)
        except OSError as error:
            raise StoreError("a bad sector") from error

    monkeypatch.setattr(os, "preadv", part_of)
    state: Any = SimpleNamespace(
        lock=threading.Lock(),
        blocks=SimpleNamespace(resident=lambda: np.array([0]), page_table=np.array([0])),
        memory=SimpleNamespace(page_bytes=PAGE, arena=Arena(1, 1, PAGE)),
        index=SimpleNamespace(ids=np.zeros((1, 32), np.uint8)),
        store=SimpleNamespace(read=read),
        reading=[],
    )
    try:
        with pytest.raises(StoreError, match="a bad sector"):
            PageCheck(state).repair()
    finally:
        file.close()


def test_others_have_the_lock_while_pages_are_hashed() -> None:
    arena, lock = Arena(3, 3, PAGE), threading.Lock()
    arena.pages[:] = np.random.default_rng(0).integers(0, 256, (3, PAGE), np.uint8)
    sound = [blake3(page).digest() for page in arena.pages]
    compared: list[tuple[int, bool]] = []

    class Ids:
        """Looked up when a page has been hashed."""

        def __getitem__(self, page: int) -> np.ndarray:
            compared.append((page, lock.locked()))
            if len(compared) == 4:  # between the hash of page 2, which was changed just now, and its second one
                state.blocks.page_table[2] = ABSENT
            return np.frombuffer(sound[page], np.uint8)

    state: Any = SimpleNamespace(
        lock=lock,
        blocks=SimpleNamespace(resident=lambda: np.arange(3), page_table=np.arange(3)),
        memory=SimpleNamespace(arena=arena),
        index=SimpleNamespace(ids=Ids()),
    )
    arena.pages[1:, 7] ^= 1
    assert PageCheck(state).damaged() == [1]
    assert compared == [(0, False), (1, False), (1, True), (2, False)]
