"""Measures one method in a process of its own."""
