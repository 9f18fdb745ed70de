"""A compile's work for each task, as tasks of a Ray cluster: jobs are packed, sent, done, and sent back."""
