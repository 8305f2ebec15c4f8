"""Training rows that a test set contains too."""
