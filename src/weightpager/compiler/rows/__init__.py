"""Embedding tables whose rows come on demand: which ones, how often texts use each row, and writing them."""
