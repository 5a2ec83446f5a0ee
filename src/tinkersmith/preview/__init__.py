"""Samples as the model sees them: every token, and whether it is trained on."""
