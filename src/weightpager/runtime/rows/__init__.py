"""Rows of tables that are only looked up: which are in memory, and how the others come. Reads through the pager."""
