"""Compiling and serving on a Ray cluster: never on a device. Ray is imported here alone, and by nothing below."""
