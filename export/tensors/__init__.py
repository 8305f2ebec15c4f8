"""Tensors of models and adapters on disk: safetensors and PyTorch files, read and written one at a time."""
