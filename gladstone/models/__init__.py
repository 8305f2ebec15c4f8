"""Base models and their tokenizers, as folders and from the Hub."""
