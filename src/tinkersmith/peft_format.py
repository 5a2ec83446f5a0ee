"""The names that PEFT gives to an adapter's files and tensors; shared by the engine and the export."""

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
