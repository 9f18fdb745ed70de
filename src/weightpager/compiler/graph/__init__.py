"""A task kind's module as a graph: traced without memory, translated, simplified, compared with the module."""
