"""Narrow jobs for a small decoder, each read from its source as prompts and completions."""
