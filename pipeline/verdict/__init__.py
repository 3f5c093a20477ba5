"""Turns windows and scores into the answer, and holds the model bundle. Nothing here reads audio or runs a network."""
