"""Which task comes next, and when: numpy, no I/O."""
