"""16-bit GGUF files to quantised ones."""
