"""Attention and LoRA layers that are fast on the CPU."""
