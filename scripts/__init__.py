"""Programs that set up, lock and document the project."""
