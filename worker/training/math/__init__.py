"""The arithmetic of training for stacked tensors: update rules, losses, schedules, noise."""
