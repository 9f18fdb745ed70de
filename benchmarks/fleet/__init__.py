"""Delivery to devices: bytes, speed, kills, cut connections, mutants."""
