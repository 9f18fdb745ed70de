"""The page ``docs/results.md``, from what the other benchmarks have found."""
