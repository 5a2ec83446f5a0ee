"""From prompts to sampled tokens and log-probabilities."""
