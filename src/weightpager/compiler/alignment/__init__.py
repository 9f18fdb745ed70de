"""Which tasks keep which block: an optimisation problem and its two searches. Pure numpy."""
