"""One dense model for all tasks, as it is or in few bits, with a head or an adapter for each task."""
