"""The base model with its adapter, and the loss of a micro-batch."""
