"""How well each predictor foresees the next task."""
