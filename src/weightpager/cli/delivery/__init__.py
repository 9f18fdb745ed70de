"""Verbs that bring bundles to other machines. One verb a file."""
