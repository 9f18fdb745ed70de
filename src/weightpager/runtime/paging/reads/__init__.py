"""How pages are read: without Python between the reads, or by threads of Python. Owns threads."""
