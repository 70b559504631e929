"""The training engine: stacked trials, update rules, explosion, checkpoints."""
