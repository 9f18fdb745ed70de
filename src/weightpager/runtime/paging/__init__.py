"""Carries plans out: the only locks and threads that change what is in the arena."""
