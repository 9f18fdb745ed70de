"""Prefetches pages of a predicted switch, where that pays."""
