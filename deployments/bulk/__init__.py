"""Verdicts on many files with Ray Data: `inputs` finds the files, `scoring` scores them on a cluster, and `journal`
keeps every answer. There is no HTTP here, and all decisions are made in `pipeline`."""
