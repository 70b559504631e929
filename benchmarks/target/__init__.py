"""The parts of `benchmarks/time_to_target.py`."""
