"""The connection to a server of the Tinker API: the cloud's, one at a URL, or our own engine."""
