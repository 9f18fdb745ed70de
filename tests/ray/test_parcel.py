"""Objects come out of a parcel as they went in, over memory of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightpager.ray.job import Bytes, Parcel, pack, unpack


def sent(found: object) -> tuple[Parcel[int], list[Bytes]]:
    kept: list[Bytes] = []

    def put(content: Bytes) -> int:
        kept.append(content.copy())
        kept[-1].flags.writeable = False  # as an object store gives it back
        return len(kept) - 1

    return pack(found, put), kept


def test_tensors_keep_values_dtypes_and_what_they_share() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 7))
    found = {
        "weight": weight,
        "tied": weight,
        "rows": weight.detach()[1:3],
        "half": torch.randn(3, 2).bfloat16().T,
        "none": torch.empty(0, 4),
        "ids": torch.arange(3),
        "array": np.arange(4),
    }
    parcel, kept = sent(found)
    again = unpack(parcel, kept)
    assert len(kept) == 4  # storages, the shared one once
    assert parcel.bytes == 4 * 35 + 2 * 6 + 8 * 3
    for name in ("weight", "rows", "half", "none", "ids"):
        assert again[name].dtype == found[name].dtype
        assert torch.equal(again[name], found[name])
    assert (again["array"] == found["array"]).all()
    assert isinstance(again["weight"], torch.nn.Parameter)
    assert again["tied"] is again["weight"]
    with torch.no_grad():
        again["weight"][1] = 3.0
    assert (again["rows"][0] == 3).all()
    assert not (weight[1] == 3).any()


@pytest.mark.parametrize("start", [0, 4, 60])
def test_values_begin_where_they_began_in_a_cache_line(start: int) -> None:
    room = np.zeros(400, np.uint8)
    first = (start - room.ctypes.data) % 64
    values = torch.from_numpy(room[first : first + 40].view(np.float32))
    again = unpack(*sent(values))
    assert again.data_ptr() % 64 == start
    assert torch.equal(again, values)
