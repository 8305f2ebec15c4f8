"""The proof that a GGUF is the trained model: a list of checks."""
