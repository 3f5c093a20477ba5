"""Everything that decides a verdict, in one process and without Ray.

The stages, in order: `decode`, `vad`, `diarize`, `extract`, `classifier`; `detector.Detector` runs them all.
"""
