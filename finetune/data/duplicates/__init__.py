"""Finds rows that repeat, contradict or resemble each other."""
