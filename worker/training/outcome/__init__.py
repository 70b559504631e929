"""What is kept of a trial that ended: weights, predictions, histograms."""
