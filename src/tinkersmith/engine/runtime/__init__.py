"""What the engine thread holds: loaded base models with fast code, and their clients."""
