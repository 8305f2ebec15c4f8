"""Rows that repeat or contradict each other."""
