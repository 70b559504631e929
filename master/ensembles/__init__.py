"""Ensembles of the models that a search kept."""
