"""The version, in the one place that both sides read."""

__version__ = "0.2.0"

# Releases of the tinker SDK, stated here for the package, the engine, the Makefile and the docs.
# The recipe side needs the newest: it calls RestClient.get_server_capabilities, which older ones
# lack. The engine serves programs with any of them, and is tested with the first and the last.
OLDEST_SDK, NEWEST_SDK = "0.30.0", "0.38.0"
