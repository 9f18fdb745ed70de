"""What runs the tasks of an open bundle, each in a room of its own, and what an engine gives them."""
