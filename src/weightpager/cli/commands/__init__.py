"""One verb a module, imported only when it runs."""
