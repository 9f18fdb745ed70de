"""Arenas of devices with memory of their own, in torch; nothing here is imported where the arena is host memory."""
