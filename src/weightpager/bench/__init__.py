"""Measuring: cold reads that are proved, limits that are enforced, machines that are described.

Import the modules themselves. Those that measure files and limits need no torch; this package loads none of them, so
that ``python -m weightpager.bench.limited`` starts a module that isn't loaded yet.
"""
