"""Base model and adapter to GGUF, through the converter of llama.cpp."""
