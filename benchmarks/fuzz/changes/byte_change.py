"""Changes of a file's bytes that know nothing of what they mean."""

from __future__ import annotations

from random import Random


def change(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes, and what was done in words."""
    how = random.choice([_flip, _flip, _overwrite, _insert, _delete, _truncate, _zero, _repeat])
    changed = bytearray(content)
    words = how(changed, random)
    return bytes(changed), words


def _place(content: bytearray, random: Random) -> int:
    # Headers are at the front: half of the changes go there.
    most = len(content) if random.random() < 0.5 else min(len(content), 300)
    return random.randrange(max(1, most))


def _flip(content: bytearray, random: Random) -> str:
    places = [_place(content, random) for _ in range(random.choice([1, 1, 1, 2, 8]))] if content else []
    for place in places:
        content[place] ^= 1 << random.randrange(8)
    return f"flip bits at {places}"


def _overwrite(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 2, 4, 8, 64])
    content[at : at + size] = random.randbytes(min(size, len(content) - at))
    return f"overwrite {size} bytes at {at}"


def _insert(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 3, 8, 4096])
    content[at:at] = random.randbytes(size)
    return f"insert {size} bytes at {at}"


def _delete(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 3, 8, 4096])
    del content[at : at + size]
    return f"delete {size} bytes at {at}"


def _truncate(content: bytearray, random: Random) -> str:
    at = random.choice([0, 1, 7, 8, 9, len(content) // 2, max(0, len(content) - 1), _place(content, random)])
    del content[at:]
    return f"truncate to {len(content)} bytes"


def _zero(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 8, 64, 4096])
    size = min(size, len(content) - at)
    content[at : at + size] = bytes(size)
    return f"zero {size} bytes at {at}"


def _repeat(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 8, 64, 1024])
    content[at:at] = content[at : at + size]
    return f"repeat {size} bytes at {at}"
