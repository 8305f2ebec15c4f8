"""Adapter to GGUF: merge while converting, quantise, prove."""
