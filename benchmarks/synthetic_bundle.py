"""Bundles of random weights; they live in the package, since ``weightpager bench`` needs one too."""

from weightpager.bench.synthetic_bundle import (
    Recipe,
    bundle_of,
    half_billion,
    half_billion_config,
    many_pages,
    small,
    write,
)

__all__ = ["Recipe", "bundle_of", "half_billion", "half_billion_config", "many_pages", "small", "write"]
