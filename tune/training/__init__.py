"""Trains and calibrates a detector, from a table of features or from clips, and makes the folds for a fair test.
Nothing here starts a cluster."""
