"""The machine: processors, memory, threads, and what was measured on it."""
