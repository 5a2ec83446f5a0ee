"""The connection to a server of the Tinker API: Tinker's cloud, a URL, or the embedded engine."""
