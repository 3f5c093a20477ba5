"""Makes a model bundle from recordings, and measures how good it is.

The commands are `corpus`, `extract`, `train`, `kfold`, `search`, `evaluate`, `stress` and `adapt`. They use the modules
`errors`, `command`, `cluster`, `places` and `scoring`, and the packages `corpora` for the clips, `training` for the
detector and `reports` for the figures.
"""
