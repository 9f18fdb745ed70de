"""Requests' texts, conversations and images, read before they wait for the worker."""
