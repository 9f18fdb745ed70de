"""The verbs of a server: start it, list servers, look at one."""
