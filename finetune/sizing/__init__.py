"""How much memory a training step takes, and what makes it fit."""
