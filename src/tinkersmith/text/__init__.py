"""Prompts and tokens: templates, tokenizers, and samples as token ids with loss weights."""
