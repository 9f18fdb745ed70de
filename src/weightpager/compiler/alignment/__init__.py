"""Which tasks keep which block: an optimisation problem and its search. Pure numpy."""
