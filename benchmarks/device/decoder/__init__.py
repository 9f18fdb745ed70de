"""Whole processes of a language model, ours and llama.cpp: starts processes, and owns none of what they do."""
