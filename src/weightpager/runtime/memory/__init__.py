"""The byte budget and the arena, on the host or on a device. Knows slots, but not tasks."""
