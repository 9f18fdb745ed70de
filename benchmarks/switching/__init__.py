"""How fast tasks are switched, and what decides how much a switch loads."""
