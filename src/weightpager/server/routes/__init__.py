"""OpenAI's routes and the admin's: bodies in, answers out. A route is a file and its schema."""
