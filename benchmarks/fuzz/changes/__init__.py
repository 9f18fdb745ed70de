"""What may be changed in a bundle, a kind a file."""
