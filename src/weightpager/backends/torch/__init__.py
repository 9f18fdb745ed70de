"""Tasks as torch modules: transformers' architectures over paged weights. Imported where torch runs tasks, only."""
