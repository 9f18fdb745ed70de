"""Real texts with labels, read out of archives. Pure parsing."""
