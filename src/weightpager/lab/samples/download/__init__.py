"""Archives from package registries: pinned, fetched into a cache, read without unpacking."""
