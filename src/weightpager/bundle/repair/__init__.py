"""Mending a damaged bundle from another copy, in place."""
