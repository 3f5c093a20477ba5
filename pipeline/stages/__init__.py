"""The steps after decoding, in the order of the graph: `vad`, `diarize`, `extract`, `classify`. Their networks are in
`networks`, and their arithmetic is in `verdict`."""
