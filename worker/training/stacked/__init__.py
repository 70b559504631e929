"""An array of models as tensors, with one row per slot, and its training step."""
