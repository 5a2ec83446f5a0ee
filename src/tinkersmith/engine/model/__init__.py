"""Frozen base weights, the LoRA adapters on them, and the protocols of kernels."""
