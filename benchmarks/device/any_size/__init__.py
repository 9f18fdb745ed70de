"""Whole processes of a model that reads pictures of any size: ours, and llama.cpp with its language model alone."""
