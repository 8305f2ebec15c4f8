"""Reports on rows and runs."""
