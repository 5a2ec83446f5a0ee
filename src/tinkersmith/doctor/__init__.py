"""What is wrong with samples: duplicates, contradictions, leaks, odd answers."""
