"""Commands about training: train and runs."""
