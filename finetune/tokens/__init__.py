"""Turns rows into token ids, labels and batches."""
