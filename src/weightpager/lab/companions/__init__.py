"""Bundles of a bundle's own model and tasks that were compiled otherwise: which there are, and how they are made."""
