"""How pages are read, by native code or by threads of Python, and who waits for them. Owns threads."""
