"""What a compile found out about a bundle, and what to use at a given memory. Pure."""
