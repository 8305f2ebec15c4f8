"""The recipe: its fields, how it is loaded, and which settings contradict each other."""
