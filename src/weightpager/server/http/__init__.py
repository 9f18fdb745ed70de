"""HTTP around the routes: the application, its process, who may ask, limits, errors, logs."""
