"""A user's store that raises what `PageStore` doesn't document."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import weightpager as wp
from encoder_tasks import logits
from engines import check_pages
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.errors import StoreError, SwitchFailedError
from weightpager.store import LocalStore, PageStore


class BrokenStore:
    """Raises what it is told to, where it is told to."""

    def __init__(self, inner: PageStore) -> None:
        self.inner = inner
        self.errors: dict[str, BaseException] = {}
        self.far: object = None

    def _may_fail(self, method: str) -> None:
        if method in self.errors:
            raise self.errors[method]

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        self._may_fail("read")
        self.inner.read(first, into)

    def span(self, first: int) -> int:
        self._may_fail("span")
        return self.inner.span(first) if self.far is None else self.far  # type: ignore[return-value]

    def close(self) -> None:
        self.inner.close()
        self._may_fail("close")


@pytest.mark.parametrize("kind", [OSError, ValueError, MemoryError, SystemExit, StopIteration])
def test_what_a_read_raises_comes_as_a_store_error(
    bundle: Bundle, expected: dict[str, torch.Tensor], kind: type[BaseException]
) -> None:
    error = kind("any")
    store = BrokenStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        animal = engine.activate("animal")
        store.errors["read"] = error
        with pytest.raises(StoreError, match=kind.__name__) as caught:
            engine.activate("weather")
        assert caught.value.__cause__ is error
        assert engine.report().active == ("animal",)
        assert torch.equal(logits(animal), expected["animal"])
        store.errors = {}
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_a_layer_that_waits_for_pages_gets_the_documented_error(bundle: Bundle) -> None:
    store = BrokenStore(LocalStore(bundle))
    store.errors["read"] = OSError(5, "Input/output error")
    with (
        wp.Engine(bundle, EngineConfig(), lambda _: store) as engine,
        engine.task("animal", wait=False) as module,
        pytest.raises(SwitchFailedError, match="Input/output error"),
    ):
        logits(module)


@pytest.mark.parametrize("far", ["many", 2.5, None])
def test_a_span_that_is_none_comes_as_a_store_error(bundle: Bundle, far: object) -> None:
    store = BrokenStore(LocalStore(bundle))
    if far is None:
        store.errors["span"] = KeyError("page")
    store.far = far
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        with pytest.raises(StoreError, match="cannot say how far page"):
            engine.activate("animal")
        store.errors, store.far = {}, None
        engine.activate("animal")
        check_pages(engine)


def test_what_a_repair_meets_comes_as_a_store_error(bundle: Bundle) -> None:
    store = BrokenStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        engine.activate("animal")
        page = int(engine.blocks.resident()[0])
        engine._memory.arena.content(int(engine.blocks.page_table[page]))[3] ^= 1
        store.errors["read"] = OSError(5, "Input/output error")
        with pytest.raises(StoreError, match=f"cannot read page {page}: OSError: .*Input/output error"):
            engine.repair()
        store.errors = {}
        assert engine.repair() == [page]


def test_a_store_that_cannot_be_closed_leaves_nothing_open(bundle: Bundle) -> None:
    store = BrokenStore(LocalStore(bundle))
    engine = wp.Engine(bundle, EngineConfig(), lambda _: store)
    engine.activate("animal")
    store.errors["close"] = OSError(5, "Input/output error")
    with pytest.raises(StoreError, match="cannot close the store: OSError"):
        engine.close()
    assert engine.report().active == ()
    engine.close()
