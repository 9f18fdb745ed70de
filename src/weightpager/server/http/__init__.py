"""HTTP around the routes: the application, its process, limits, logs, and the file that announces a server."""
