"""What other programs load: GGUF files for llama.cpp and Ollama, and models on a hub."""
