"""From recordings to a model bundle, and how good that bundle is.

The modules, each importing only those above it: `errors`, `manifest`, `readers`, `metrics`, `folds`, `cluster`,
`audio`, `extract`, `estimator`, `calibrate`, `validate`; then the commands `corpus`, `train`, `kfold`, `search`,
`evaluate`.
"""
