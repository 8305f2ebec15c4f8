"""GGUF files: headers, read and checked before llama.cpp loads them."""
