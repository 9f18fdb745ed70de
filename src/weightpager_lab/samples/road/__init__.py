"""Rendered roads, and the small model that is trained on them."""
