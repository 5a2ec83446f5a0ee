"""What a running engine holds: clients' adapters, loaded base models, compiled code."""
