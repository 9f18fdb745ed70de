"""HTTP routes: OpenAI's, the admin's, and those that only look. Adding one takes a file here and a file in `schema`."""
