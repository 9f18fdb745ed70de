"""Verbs that make bundles. One verb a file."""
