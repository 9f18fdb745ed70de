"""Labelled data of a task: files → rows → texts or images → batches of numpy's arrays. Imports no torch."""
