"""What switches wait for with prefetch, without it, and with one who knows the future."""
