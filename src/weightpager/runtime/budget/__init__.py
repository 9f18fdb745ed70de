"""How a memory budget is split between pages, rows and block tables, without an arena. No threads, no torch."""
