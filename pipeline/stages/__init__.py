"""The steps after decoding, in the order of the graph: `vad`, `diarize`, `extract`, `classify`. The networks and the
arithmetic that they use are not here but in `networks` and `verdict`."""
