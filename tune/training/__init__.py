"""From a table of features to a trained and calibrated detector, and the folds that keep its test fair. Nothing here
reads audio or starts a cluster."""
