"""Metrics, plots and the report of given scores. Nothing here trains a detector or scores a clip."""
