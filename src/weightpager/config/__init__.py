"""Settings: parsed once, frozen, unknown or contradictory ones refused. No torch."""

from weightpager.config.cache_folder import cache_dir, cache_limit, xdg_folder
from weightpager.config.durations import LONGEST, format_duration, parse_latency
from weightpager.config.engine_config import EngineConfig, check_backend
from weightpager.config.numbers import is_number, is_whole, stated_count
from weightpager.config.sizes import format_enough, format_room, format_size, parse_bandwidth, parse_size, stated_size
from weightpager.config.text import is_unicode

__all__ = [
    "LONGEST",
    "EngineConfig",
    "cache_dir",
    "cache_limit",
    "check_backend",
    "format_duration",
    "format_enough",
    "format_room",
    "format_size",
    "is_number",
    "is_unicode",
    "is_whole",
    "parse_bandwidth",
    "parse_latency",
    "parse_size",
    "stated_count",
    "stated_size",
    "xdg_folder",
]
