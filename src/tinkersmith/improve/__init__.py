"""A run and its own answers -> a better run: trained on the answers that are right."""
