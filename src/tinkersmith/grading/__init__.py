"""The final answer of a text, and whether two answers mean the same."""
