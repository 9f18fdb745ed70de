"""A bundle behind HTTP: OpenAI's routes, a scheduler that saves switches, and ways to watch both."""
