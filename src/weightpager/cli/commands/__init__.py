"""Verbs about bundles that there are, and those that measure. One verb a file, imported only when it runs."""
