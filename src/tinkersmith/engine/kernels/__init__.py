"""The implementations of a model's dense path, and the one place that chooses among them."""
