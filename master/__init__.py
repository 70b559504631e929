"""The master: samples trials, publishes them, watches the workers, ranks the results.

It does not import torch, so it starts fast and runs on a laptop.
"""
