"""Names and descriptions of the figures.

This module does not import plotly, so a command can list the figures at once.
"""

from __future__ import annotations

FIGURE_TITLES = {
    "hyperparameters": "Hyperparameters and their ranges",
    "rungs": "Promotions",
    "parallel": "Parallel coordinates",
    "importance": "Which hyperparameter matters",
    "outcomes": "Where trials ended",
    "losses": "Loss over epochs",
    "accuracies": "Accuracy over epochs",
    "ratios": "Update:weight ratio",
    "histograms": "Activations and gradients",
    "weights": "First-layer weights",
    "progress": "Best so far",
    "timeline": "Workers over time",
}
FIGURES: dict[str, str] = {  # in the order of the report
    "hyperparameters": "the metric against each hyperparameter, by stage and how drawn, "
    "with ranges, border zones and the best",
    "rungs": "the metric against the budget, a line a trial: who was promoted, and how far",
    "parallel": "parallel coordinates of the trials, coloured by the metric",
    "importance": "which hyperparameter matters: permutation importance on a random forest",
    "outcomes": "where trials completed, exploded, were stopped, killed or failed, "
    "over the two most telling hyperparameters",
    "losses": "training and validation loss of chosen trials over epochs, on a log axis",
    "accuracies": "training against validation accuracy of chosen trials over epochs",
    "ratios": "update:weight ratio of each layer over epochs, with the line at 1e-3",
    "histograms": "histograms of activations and gradients in each layer of a kept trial",
    "weights": "the first layer's weights of a kept trial, as a picture",
    "progress": "the best so far against the epochs trained and against time",
    "timeline": "workers over time: each attempt a bar, promotions, later attempts "
    "and kills marked",
}
