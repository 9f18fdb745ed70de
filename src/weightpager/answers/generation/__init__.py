"""Texts that grow: prompts read in pieces, tokens drawn in steps, what may be shown of them."""
