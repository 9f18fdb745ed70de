"""How a memory budget is split between pages, rows and block tables: pure, no arena."""
