"""A trace of task switches, replayed in virtual time."""
