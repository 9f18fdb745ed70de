"""Writing a repository: keys, signed metadata, packs. Only these modules sign."""
