"""Several runs of one project with different settings, on one server, and which is the best."""
