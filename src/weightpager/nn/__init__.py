"""Torch modules over paged weights."""
