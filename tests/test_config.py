import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.config import EngineConfig, format_size, parse_bandwidth, parse_size
from weightpager.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [("512MiB", 512 << 20), ("1.5 GB", 1_500_000_000), ("64 kib", 65536), (4096, 4096), ("7", 7), ("3B", 3)],
)
def test_sizes_with_units(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1 parsec", "1e9", "0", "0.1B", "nan", "1MiB extra"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="size: expected"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size(text) > 0


def test_bandwidths() -> None:
    assert parse_bandwidth("300MB/s") == parse_bandwidth("300MB") == 3e8
    with pytest.raises(ConfigError, match="bandwidth: expected"):
        parse_bandwidth("fast")


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [format_size(count) for count in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "cuda:"},
        {"budget": 0},
        {"io_threads": 0},
        {"io_threads": 65},
        {"minimum_residence": -1},
    ],
)
def test_a_wrong_engine_configuration_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EngineConfig(**changes)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_known_by_torchs_names(device: str) -> None:
    assert EngineConfig(device=device).device == device
