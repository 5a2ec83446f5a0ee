"""Commands about how good a model is: evaluate and compare."""
