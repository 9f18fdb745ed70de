"""Loads pages before a predicted switch needs them, as long as that pays. Owns one thread."""
