"""How much each block matters to each task, and how much every task may keep."""
