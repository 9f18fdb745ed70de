"""The one way from a task and an input to an answer: command line, evaluation and server use it. Needs no torch."""
