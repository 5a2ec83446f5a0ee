"""From a batch to losses, gradients and an optimizer step."""
