import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from weightpager.config import (
    EngineConfig,
    cache_dir,
    format_enough,
    format_room,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_latency,
    parse_size,
    stated_size,
)
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


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("4M", "4MiB (1,048,576 bytes each) or 4MB (1,000,000)"),
        ("1.5 gi", "1.5GiB (1,073,741,824 bytes each) or 1.5GB"),
    ],
)
def test_a_unit_without_its_b_is_refused_with_what_may_be_meant(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"got {text!r}; write {hint}")):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size(text) > 0


def test_latencies() -> None:
    assert parse_latency("0.3ms") == parse_latency(" 300 us") == parse_latency("300µs") == pytest.approx(3e-4)
    assert (parse_latency("0s"), parse_latency("2s")) == (0, 2)
    for wrong in ("3", "ms", "-1ms", "1h", "61s", "nans", ""):
        with pytest.raises(ConfigError, match="x: expected a time with a unit"):
            parse_latency(wrong, "x")


def test_bandwidths() -> None:
    assert parse_bandwidth("300MB/s") == parse_bandwidth("300MB") == 3e8
    for wrong in ("fast", "300", "300/s", "3e8", ""):
        with pytest.raises(ConfigError, match="bandwidth: expected a size per second with a unit"):
            parse_bandwidth(wrong)


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [format_size(count) for count in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]


@given(st.integers(1, 2**60))
@example(30_828_200)  # for which a budget of 29.4 MiB was once printed and then refused
@example(2**20 - 1)
def test_a_size_that_is_printed_as_enough_is_enough(count: int) -> None:
    assert count <= parse_size(format_enough(count)) <= count + max(1, count // 10)


@given(st.integers(1, 2**60))
@example(2**20 - 1)
def test_a_size_that_is_printed_as_room_is_there(count: int) -> None:
    assert count - count // 10 <= parse_size(format_room(count)) <= count


@given(st.integers(0, 10239), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_a_size_is_shown_as_it_was_stated(tenths: int, unit: str) -> None:
    stated = f"{tenths // 10} B" if unit == "B" else f"{tenths // 10}.{tenths % 10} {unit}"
    assume(tenths >= 10)
    assert format_enough(parse_size(stated)) == format_room(parse_size(stated)) == stated


def test_sizes_are_read_to_the_byte() -> None:
    assert parse_size("0.0011KB") == 1
    assert parse_size("1.001KB") == 1001
    assert parse_size("999999999999999999") == 10**18 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "cuda:"},
        {"budget": 0},
        {"io_threads": 0},
        {"io_threads": 65},
    ],
)
def test_a_wrong_engine_configuration_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EngineConfig(**changes)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_known_by_torchs_names(device: str) -> None:
    assert EngineConfig(device=device).device == device


def test_a_size_that_is_not_stated_is_none() -> None:
    assert stated_size(None, "budget") is None
    assert stated_size("2KiB", "budget") == 2048
    with pytest.raises(ConfigError, match="budget: expected a number with a unit"):
        stated_size("", "budget")


@pytest.mark.parametrize(
    ("stated", "folder"), [("/var/cache", "/var/cache"), ("relative", "/home/user/.cache"), ("", "/home/user/.cache")]
)
def test_a_cache_folder_of_xdgs_is_absolute(monkeypatch: pytest.MonkeyPatch, stated: str, folder: str) -> None:
    monkeypatch.delenv("WEIGHTPAGER_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert cache_dir() == Path(folder, "weightpager")


def test_a_cache_in_a_home_that_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(ConfigError, match="WEIGHTPAGER_CACHE: expected a directory, found no home"):
        cache_dir()


def test_long_times_have_a_unit_or_are_seconds() -> None:
    assert [parse_duration(text, "x") for text in ("5m", " 5 min", "90s", "1h", "1.5 h", "300")] == [
        300, 300, 90, 3600, 5400, 300,
    ]  # fmt: skip
    for wrong in ("", "0", "0s", "-1m", "5d", "m", "5ms", "1e3", "9999999999", "999999999h"):
        with pytest.raises(ConfigError, match=r"x: expected a time, such as 5m, 90s or 1h, got "):
            parse_duration(wrong, "x")
