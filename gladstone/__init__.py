"""Shared by all stages: errors, chat types, row formats, templates, artifacts, GGUF headers, command glue."""

__version__ = "0.1.0"
