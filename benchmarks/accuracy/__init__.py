"""Accuracy per resident byte, ours against what could defeat it."""
