"""Damaged and hostile bundles by the ten thousand: each is used as it should be, or refused with one of our errors."""
