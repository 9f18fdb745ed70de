"""Which block goes to which place of which page, and the bytes that are written."""
