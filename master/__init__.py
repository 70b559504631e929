"""Samples, publishes, watches, ranks. No torch: it must run on a laptop and start fast."""
