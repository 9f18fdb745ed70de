"""Reading a repository's files: from a directory, or an HTTP server that may misbehave. Nothing is trusted here."""
