"""What this machine has: memory and processor."""
