"""A training run's folder, and the trained model that a path or a run names."""
