"""Where pages come from. No torch, no policy."""

from weightpager.store.base import FileStore, PageStore, Sources, VerifyingStore
from weightpager.store.block_reader import BlockReader
from weightpager.store.joined import JoinedStore
from weightpager.store.local import LocalStore
from weightpager.store.read_plan import (
    PageRun,
    StorageModel,
    SwitchCost,
    all_switches,
    coalesce,
    group_runs,
    most_pages,
    read_count,
    span_of,
    switch_cost,
)

__all__ = [
    "BlockReader",
    "FileStore",
    "JoinedStore",
    "LocalStore",
    "PageRun",
    "PageStore",
    "Sources",
    "StorageModel",
    "SwitchCost",
    "VerifyingStore",
    "all_switches",
    "coalesce",
    "group_runs",
    "most_pages",
    "read_count",
    "span_of",
    "switch_cost",
]
