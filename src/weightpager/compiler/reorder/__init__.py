"""Function-preserving permutations that gather what the same tasks need into the same blocks."""
