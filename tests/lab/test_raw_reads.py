"""The yardstick reads what a switch reads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from weightpager.bundle import Bundle
from weightpager.errors import StoreError
from weightpager_lab.direct_reads import RawReads

pytest.importorskip("weightpager.kernels._native")


def test_the_same_pages_come(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    pages = bundle.pages_of(list(bundle.tasks)[-1])
    with closing(RawReads(bundle)) as raw:
        assert (raw.seconds(pages) or 0.0) > 0.0
        found = raw._rows.reshape(-1, bundle.page_bytes)[: len(pages)]
        assert [blake3(row.tobytes()).digest() for row in found] == [bundle.pages.ids[page].tobytes() for page in pages]


def test_a_page_that_is_not_what_it_should_be_is_said(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    pages = bundle.pages_of(next(iter(bundle.tasks)))
    bundle.pages.ids[pages[-1]] ^= 1
    with closing(RawReads(bundle)) as raw, pytest.raises(StoreError, match="isn't what it should be"):
        raw.seconds(pages)
