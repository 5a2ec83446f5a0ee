"""A trained model and a test set -> scores with their intervals."""
