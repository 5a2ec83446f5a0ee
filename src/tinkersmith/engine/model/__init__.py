"""A base model's weights, LoRA adapters, and the protocols that kernels implement."""
