"""Bodies in, answers out: of OpenAI's routes, the admin's, and those that look on. A route is a file and its schema."""
