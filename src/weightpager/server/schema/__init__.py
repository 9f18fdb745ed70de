"""Bodies of requests and answers: what is taken, and how it is said. Needs neither torch nor a server."""
