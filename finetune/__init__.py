"""Rows to adapter: recipe, data, labels, training."""
