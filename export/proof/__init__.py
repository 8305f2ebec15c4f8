"""The proof that a GGUF is the model that was trained, check by check."""
