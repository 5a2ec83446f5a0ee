"""Commands about what to do with a trained model: export."""
