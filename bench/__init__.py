"""GGUF to report: quality with intervals, speed with spread, memory, and answers side by side."""
