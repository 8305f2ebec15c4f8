"""GGUF files: headers read and checked before llama.cpp sees them."""
