"""The names of the figures and what each shows; without plotly, so that a command can list them at once."""

from __future__ import annotations

FIGURES: dict[str, str] = {  # in the order of the report
    "hyperparameters": "the metric against each hyperparameter, with every stage's range, the border zones and the best",
    "parallel": "parallel coordinates of the trials, coloured by the metric",
    "importance": "which hyperparameter matters: permutation importance on a random forest",
    "outcomes": "where trials completed, exploded, were stopped, killed or failed, over the two most telling hyperparameters",
    "losses": "training and validation loss of chosen trials over epochs, on a log axis",
    "accuracies": "training against validation accuracy of chosen trials over epochs",
    "ratios": "update:weight ratio of each layer over epochs, with the line at 1e-3",
    "histograms": "histograms of activations and gradients in each layer of a kept trial",
    "weights": "the first layer's weights of a kept trial, as a picture",
    "progress": "the best so far against trials and against time",
    "timeline": "workers over time: each trial a bar, attempts and kills marked",
}
