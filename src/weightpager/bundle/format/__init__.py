"""The parts of a bundle on disk, one file a module: what they hold, and their validation."""
