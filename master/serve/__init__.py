"""The dashboard: `master serve`, a live page of the searches in a checkpoint root, and the same as JSON."""
