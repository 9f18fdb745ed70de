"""Looking rows up through a cache, alone and from many threads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from weightpager.bundle.format.row_table import RowTable, RowTableEntry, decode_rows, encode_rows, table_pages
from weightpager.kernels.torch.device_weight import as_array
from weightpager.runtime.rows import RowCache


@dataclass(frozen=True)
class RandomTable:
    """A table of random rows, what its rows are, and its pages."""

    table: RowTable
    values: torch.Tensor
    order: npt.NDArray[np.int64]
    pages: list[bytes]

    @classmethod
    def of(cls, rows: int, columns: int, page_bytes: int, seed: int) -> RandomTable:
        random = np.random.default_rng(seed)
        values = random.standard_normal((rows, columns)).astype(np.float32)
        order = random.permutation(rows)
        places = np.empty(rows, np.uint16)
        places[order] = np.arange(rows)
        table = RowTable(RowTableEntry(name="t", rows=rows, columns=columns, lookups=0.0, uses={}), 0, places)
        stored = torch.from_numpy(decode_rows(encode_rows(values)))
        return cls(table, stored, order, list(table_pages(values, order, page_bytes)))


def looked_up(cache: RowCache, ids: npt.NDArray[np.int64], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.full((len(ids), cache.entry.columns), float("nan"), dtype=dtype)
    cache.look_up(np.asarray(ids, np.int64), as_array(out))
    return out


def wrong_while_memory_changes(cache: RowCache, values: torch.Tensor, threads: int, times: int) -> list[int]:
    """Look rows up from many threads while another one resizes the memory; the threads that got a wrong row."""
    rows = len(values)
    wrong: list[int] = []
    ended = threading.Event()

    def look_up(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(times):
            ids = random.integers(0, rows, 30) ** 2 // rows
            if not torch.equal(looked_up(cache, ids), values[torch.from_numpy(ids)]):
                wrong.append(seed)

    def resize() -> None:
        random = np.random.default_rng(9)
        while not ended.is_set():
            cache.resize(int(random.integers(0, rows)))
            time.sleep(0)

    running = [threading.Thread(target=look_up, args=(seed,)) for seed in range(threads)]
    resizer = threading.Thread(target=resize)
    for thread in (*running, resizer):
        thread.start()
    for thread in running:
        thread.join()
    ended.set()
    resizer.join()
    return wrong
