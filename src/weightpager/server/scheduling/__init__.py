"""Which requests wait, which of them run together, and the one thread that runs them."""
