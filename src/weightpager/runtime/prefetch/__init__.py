"""Loads pages ahead of a predicted switch, where that pays."""
