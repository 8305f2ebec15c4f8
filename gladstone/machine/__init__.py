"""The machine: CPUs, memory, threads, installed packages, and cached measurements."""
