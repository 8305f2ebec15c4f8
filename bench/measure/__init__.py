"""Models measured on rows, each in a child process."""
