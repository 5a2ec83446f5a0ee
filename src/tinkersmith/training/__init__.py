"""The training run: data -> steps -> checkpoints, answers and advice."""
