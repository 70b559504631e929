"""The worker: claims trials, trains them as stacked arrays, and records the results."""
