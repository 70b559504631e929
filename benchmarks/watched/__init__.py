"""The parts of `benchmarks/watching.py` that look at pages in a browser."""
