"""Processes: child processes, folder locks, redirected output, imports."""
