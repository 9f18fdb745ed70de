"""The bundle's scores, and those of simpler ways to serve the same tasks."""
