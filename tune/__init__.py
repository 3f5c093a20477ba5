"""From recordings to a model bundle, and how good that bundle is.

The commands are `corpus`, `extract`, `train`, `kfold`, `search`, `evaluate` and `stress`. They use `errors`, `command`,
`cluster` and `scoring` beside them, `corpora` for the clips, `training` for the detector and `reports` for the figures.
"""
