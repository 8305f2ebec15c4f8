"""Conversations and chat templates: how messages become text, for training, proofs, chat and benchmarks alike."""
