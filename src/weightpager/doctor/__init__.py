"""What this machine can do, and whether it does it rightly."""
