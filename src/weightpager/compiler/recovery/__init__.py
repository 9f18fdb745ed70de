"""Winning accuracy back: closed form, or training with the masks in place. Torch."""
