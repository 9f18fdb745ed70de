"""Which replica gets a request: pure, of what a router knows of its replicas. No clock, no I/O, no engine."""
