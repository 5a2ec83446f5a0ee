"""Intervals, tests and estimates of the scores of an evaluation."""
