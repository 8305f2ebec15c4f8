"""What the machine has, and how a model is fitted to it."""
