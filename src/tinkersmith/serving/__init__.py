"""Trained models behind OpenAI's and Anthropic's API, each by its own name."""
