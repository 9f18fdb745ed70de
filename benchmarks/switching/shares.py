"""How tight the budgets are that switches are measured under."""

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)
"""Of the working set that a budget has room for."""
