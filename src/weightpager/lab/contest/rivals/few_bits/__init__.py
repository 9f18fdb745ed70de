"""Weights in int8 and int4 as people run them: their numbers, torch's layers for them, and a place in a module."""
