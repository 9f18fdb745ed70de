"""A bundle with more tasks than its base: what is in the base stays bit for bit."""
