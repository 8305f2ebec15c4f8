"""Cleans one row: steps that are always safe, and steps that a user asks for."""
