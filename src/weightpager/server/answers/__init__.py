"""Forwards in steps: texts that grow, classes and vectors. Torch."""
