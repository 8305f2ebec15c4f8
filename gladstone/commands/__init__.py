"""Shared by the commands of all stages: exit codes, options, shell quoting, progress."""
