"""What people and Prometheus see of a server. Looking never reaches the worker."""
