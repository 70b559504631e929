"""The commands of the worker besides training: predict, profile, pace and test."""
