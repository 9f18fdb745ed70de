"""The one way from a task and an input to an answer, for the command line, evaluation and the server. Needs torch."""
