"""Converts base and adapter to GGUF with llama.cpp's converter."""
