"""What waits, what runs together, and the one thread that runs it."""
