"""What the machine is that a program runs on, for the recipe side and the engine alike."""
