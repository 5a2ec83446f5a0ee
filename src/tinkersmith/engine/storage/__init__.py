"""Checkpoints on disk, their index, and the names of base models. Imports no torch."""
