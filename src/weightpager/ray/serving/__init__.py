"""A bundle behind Ray Serve: servers, and a gateway that sends each request where its task is."""
