"""Bodies of requests and answers. They need neither torch nor a server."""
