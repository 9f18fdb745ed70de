"""What an engine has open: a bundle, its tasks, their pages and tables, and how it changes."""
