"""One module for each group of routes of the Tinker API."""
