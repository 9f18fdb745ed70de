"""What reads a task's inputs: texts to token ids, images to pixels, as transformers does and without it."""
