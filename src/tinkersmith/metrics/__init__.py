"""Scores of an answer beside its final answer: overlap of words, labels, JSON, a judge."""
