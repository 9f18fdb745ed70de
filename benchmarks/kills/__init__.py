"""Commands that are killed at random moments, and what may be found after them."""
