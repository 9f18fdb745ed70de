"""Bundles for many machines: a repository of signed static files, and devices that pull what they lack. No torch."""
