"""Finds training rows that a test set contains too."""
