"""From a batch to gradients and an optimizer step."""
