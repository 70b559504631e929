"""The Python interface for notebooks and scripts. ``coarsefine`` has its names."""
