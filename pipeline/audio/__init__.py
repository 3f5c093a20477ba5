"""Turns the bytes of a file into samples, and measures their quality. Nothing here finds or judges speech."""
