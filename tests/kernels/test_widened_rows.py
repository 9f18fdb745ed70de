"""Rows of tables: how they are stored, and the fast way to widen them against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightpager.bundle.format import row_table
from weightpager.kernels.rows import reference, widen_rows
from weightpager.kernels.torch.device_weight import as_array
from weightpager.kernels.torch.tables import widened


@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(0, 60),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_widened_as_the_reference_does(
    rows: int, columns: int, lookups: int, dtype: torch.dtype, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal((rows, columns)) * 10.0 ** random.integers(-4, 4, (rows, 1))).astype(np.float32)
    stored = row_table.encode_rows(values).reshape(-1)
    which = random.integers(0, rows, lookups)
    at = random.permutation(lookups).astype(np.int64)
    found, expected = (torch.zeros(lookups, columns, dtype=dtype) for _ in range(2))
    widen_rows(stored, which * (columns + 2), at, as_array(found))
    reference(stored, which * (columns + 2), at, as_array(expected))
    assert torch.equal(found, expected)
    exact = torch.from_numpy(row_table.decode_rows(stored.reshape(rows, -1)))[torch.from_numpy(which)]
    assert torch.equal(found[torch.from_numpy(at)], exact.to(dtype))


@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_a_row_keeps_its_precision(rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[0] = 0
    found = row_table.decode_rows(row_table.encode_rows(values))
    assert found.shape == values.shape
    most = np.abs(values).max(1, keepdims=True)
    assert (np.abs(found - values) <= most / 127 * 0.51).all()
    assert (row_table.decode_rows(row_table.encode_rows(found)) == found).all()


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 64))
def test_pages_hold_a_tables_rows_without_gaps(rows: int, columns: int, page_bytes: int) -> None:
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    order = np.random.default_rng(columns).permutation(rows)
    pages = list(row_table.table_pages(values, order, page_bytes))
    entry = row_table.RowTableEntry(name="t", rows=rows, columns=columns, lookups=0.0, uses={})
    assert len(pages) == entry.pages(page_bytes)
    assert {len(page) for page in pages} == {page_bytes}
    stream = b"".join(pages)
    assert stream[: entry.bytes] == row_table.encode_rows(values[order]).tobytes()
    assert not any(stream[entry.bytes :])


def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    stored, out = np.zeros(40, np.uint8), np.zeros((2, 8), np.float32)
    one = np.zeros(1, np.int64)
    for arguments in (
        (stored, one + 31, one, out),
        (stored, one - 1, one, out),
        (stored, one, one + 2, out),
        (stored, one, np.zeros(2, np.int64), out),
        (stored.astype(np.int8), one, one, out),
        (stored, one, one, out.T),
        (stored, one, one, out.astype(np.float16)),
    ):
        with pytest.raises(ValueError, match="expected"):
            widen_rows(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [5, 8])
def test_a_single_row_is_widened_wherever_its_scale_begins(columns: int) -> None:
    stored = torch.zeros(3, columns + 2, dtype=torch.uint8)
    stored[1, :columns], stored[1, columns:] = 3, torch.tensor([0x80, 0xBF])  # a scale of -1
    assert widened(stored[1:2], torch.float32).tolist() == [[-3.0] * columns]
