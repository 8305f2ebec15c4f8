"""Processes: locks, redirected output, imports."""
