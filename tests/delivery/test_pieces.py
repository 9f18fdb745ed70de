"""How a repository stores pieces of files."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from damage import contents
from fleet import Device, Fleet, Place
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.delivery.pieces import Span, restored, spans, stored
from weightpager.delivery.version_file import StoredPiece, object_path
from weightpager.errors import BundleError

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.bytes(300_000)
WEIGHTS = np.clip(RANDOM.normal(0, 40, 300_000), -127, 127).astype(np.int8).tobytes()


def kept_of(raw: bytes, there: bytes | None = None) -> tuple[StoredPiece, bytes]:
    return stored(blake3(raw).hexdigest(), raw, there)


@given(st.binary(min_size=1), st.binary())
def test_a_piece_comes_back_whatever_lies_under_its_name(raw: bytes, there: bytes) -> None:
    piece, kept = kept_of(raw, there)
    assert restored(piece, kept) == raw


@pytest.mark.parametrize("raw", [NOISE, WEIGHTS, b"x"])
def test_what_compression_would_hardly_make_smaller_stays_as_it_is(raw: bytes) -> None:
    assert len(zlib.compress(raw, 9)) > len(raw) * 7 / 8
    assert kept_of(raw)[1] == raw


@pytest.mark.parametrize("raw", [bytes(300_000), b'{"name": "value"}' * 100, NOISE[:100_000] * 2 + bytes(200_000)])
def test_what_compression_makes_smaller_is_compressed_if_its_start_says_so(raw: bytes) -> None:
    kept = kept_of(raw)[1]
    assert (len(kept) < len(raw)) == (not raw.startswith(NOISE[:1000]))


def test_what_another_compression_made_stays_as_older_versions_state_it() -> None:
    raw = bytes(300_000)
    others = zlib.compress(raw, 1)
    assert others != kept_of(raw)[1]
    assert kept_of(raw, others)[1] == others


@pytest.mark.parametrize("there", [b"", b"damaged", bytes(300_001), zlib.compress(bytes(299_999))])
def test_what_makes_other_bytes_is_replaced(there: bytes) -> None:
    assert kept_of(bytes(300_000), there) == kept_of(bytes(300_000))


def test_a_version_whose_pieces_were_compressed_otherwise_stays_whole(fleet: Fleet, tmp_path: Path) -> None:
    """A machine with another zlib, or an older release, has published the first version."""
    place = Place.make(tmp_path / "place")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("weightpager.delivery.pieces._packed", lambda raw: min(raw, zlib.compress(raw, 1), key=len))
        place.publish(fleet.old, version="1")
    before = {path: path.read_bytes() for path in (place.root / object_path("00")).parent.iterdir()}
    place.publish(fleet.new, version="2", channel="beta")
    assert {path: path.read_bytes() for path in before} == before
    for channel, bundle in (("stable", fleet.old), ("beta", fleet.new)):
        device = Device(tmp_path / channel, place.trust)
        device.pull(place.root, channel=channel)
        assert contents(device.bundle) == contents(bundle)


def file_of(offsets: object, size: int = 100_000, length: int | None = None) -> bytes:
    """A safetensors file with one tensor, which lies where it says."""
    header = json.dumps({"a": {"data_offsets": offsets}}).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        *map(file_of, (["a", "b"], [1], [1, 2, 3], 7, None, {}, [0, 1e5], [True, 50_000], [-20_000, 20_000])),
        file_of([0, 100_001]),
        file_of([0, 10**18]),
        file_of([50_000, 0]),
        b" " * 8 + b'{"a":{"data_offsets":[0,20000]}}',
        file_of([0, 20_000], length=2**63),
        (100_000).to_bytes(8, "little") + b'{"a":' * 100_000,
    ],
    ids=lambda content: content[:60].decode("latin-1"),
)
def test_a_file_is_cut_inside_whatever_its_header_says(content: bytes) -> None:
    assert spans(content, "a") == [Span(0, len(content))]


def test_a_file_is_cut_where_large_tensors_lie() -> None:
    content = file_of([0, 20_000])
    first = len(content) - 100_000
    assert spans(content) == [Span(0, first), Span(first, first + 20_000), Span(first + 20_000, len(content))]
    assert spans(content, "a")[1] == Span(first, first + 20_000, ids=True)


def flip(bundle: Path, _: Path) -> None:
    path = bundle / "resident.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def other_manifest(bundle: Path, other: Path) -> None:
    for name in (MANIFEST, MANIFEST_HASH):
        shutil.copyfile(other / name, bundle / name)


def gone(bundle: Path, _: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize("change", [flip, other_manifest, gone])
def test_a_bundle_that_changes_while_it_is_published_is_not_signed(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None]
) -> None:
    bundle = Path(shutil.copytree(fleet.new, tmp_path / "new.bundle"))
    opened = Bundle.open(bundle)
    exchanging = SimpleNamespace(open=lambda _: change(bundle, fleet.old) or opened)
    with monkeypatch.context() as patch:
        patch.setattr("weightpager.delivery.publishing.publish.Bundle", exchanging)
        with pytest.raises(BundleError, match="changed while it was published|expected a readable file"):
            fleet.place.publish(bundle, version="3")
    assert fleet.device.pull(fleet.place.root).version == "2"
