"""Which task ran when, in memory and in a file."""
