"""Conversations with a trained model in the terminal, beside its base model if wanted."""
