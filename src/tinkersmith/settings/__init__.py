"""The user's settings: their names, types and limits, and how they are read."""
