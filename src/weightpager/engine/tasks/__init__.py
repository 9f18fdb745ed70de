"""What an engine has of each task: parameters of its own, block tables, and the module over them."""
