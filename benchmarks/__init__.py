"""Measurements that the documentation cites; run from a checkout, ``python -m benchmarks.NAME --help``."""
