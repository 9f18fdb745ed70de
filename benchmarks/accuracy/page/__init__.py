"""The page ``docs/accuracy.md``, from the rows of the accuracy benchmark."""
