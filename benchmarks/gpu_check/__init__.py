"""What only a GPU can show, in ten minutes and without a network: see `benchmarks/gpu_check/__main__.py`."""
