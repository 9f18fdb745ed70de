"""Which pages are where, what a switch loads, what goes for it: pure, no I/O, no threads, no locks."""
