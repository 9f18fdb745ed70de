"""Verbs that run a bundle's tasks, and that take one out to run elsewhere. One verb a file."""
