"""Where pages come from. No torch, no policy."""

from weightpager.store.block_reader import BlockReader
from weightpager.store.page_store import FileStore, JoinedStore, LocalStore, PageStore, Sources, VerifyingStore
from weightpager.store.read_plan import (
    ReadRun,
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
    "PageStore",
    "ReadRun",
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
