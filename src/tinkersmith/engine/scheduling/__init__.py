"""Clients, their sessions, and the order in which their work runs. Imports no torch."""
