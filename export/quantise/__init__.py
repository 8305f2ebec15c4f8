"""Quantises and splits GGUF files; importance matrices and size estimates."""
