"""From windows and scores to the answer, and the model bundle that decides it. Nothing here reads audio or runs a
network."""
