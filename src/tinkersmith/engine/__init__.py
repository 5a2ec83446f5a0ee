"""The embedded engine: a server of the Tinker API on PyTorch. It knows no recipes."""
