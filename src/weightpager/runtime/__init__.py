"""What is in memory, and when."""
