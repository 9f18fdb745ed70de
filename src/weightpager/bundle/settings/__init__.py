"""A model's JSON settings, checked before transformers reads them."""
