"""What shows and measures weightpager; nothing of the product imports it but the command line's own verbs."""
