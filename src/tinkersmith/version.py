"""The version, in the one place that both sides read."""

__version__ = "0.2.0"
