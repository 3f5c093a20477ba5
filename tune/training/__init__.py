"""Trains and calibrates a detector from a table of features, and makes the folds for a fair test. Nothing here reads
audio or starts a cluster."""
