"""Verdicts on many files with Ray Data: `inputs` finds the files, `scoring` has a cluster score them, `journal` keeps
every answer. No HTTP, and no decision: those are `pipeline`'s."""
