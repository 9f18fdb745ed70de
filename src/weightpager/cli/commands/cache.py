"""``weightpager cache``: what compiles keep for each other."""

from __future__ import annotations

import time
from typing import Annotated

from weightpager.cli import output
from weightpager.cli.options import Json, explicit_option
from weightpager.config import format_duration


def cache(
    clear: Annotated[bool, explicit_option("--clear", help="Remove everything from the cache.")] = False,
    json: Json = False,
) -> None:
    """List what compiles have kept for each other: trained dense models, their scores, calibrations.

    A compile that differs from an earlier one only in sparsity, alignment, dtype or recovery takes these from the
    cache. It lies in the user's cache directory and holds at most 8 GiB, unless the environment states another limit.
    Entries that were used longest ago go first.

    Example: `weightpager cache --clear`
    """
    from weightpager.compiler.resume.cache import Cache

    compile_cache = Cache.of_user()
    if clear:
        freed = compile_cache.clear()
        if json:
            output.print_json({"folder": compile_cache.folder, "freed_bytes": freed})
        else:
            output.say(f"{compile_cache.folder}: {output.size(freed)} freed")
        return
    entries = compile_cache.entries()
    if json:
        output.print_json({"folder": compile_cache.folder, "limit_bytes": compile_cache.limit, "entries": entries})
        return
    if compile_cache.folder is None:
        output.say("WEIGHTPAGER_CACHE_LIMIT is 0: compiles keep nothing for each other")
        return
    used = sum(kept.bytes for kept in entries)
    ages = [(kept, format_duration(max(0.0, time.time() - kept.used))) for kept in entries]
    rows = [[kept.path.name, output.size(kept.bytes), f"{age} ago"] for kept, age in ages]
    if rows:
        output.table(str(compile_cache.folder), ["", "size", "used"], rows)
    output.say(f"{compile_cache.folder}: {output.size(used)} of {output.size(compile_cache.limit)}")
