"""Everything that decides a verdict, in one process and without Ray.

`detector.Detector` runs the stages in order. `audio` makes samples of a file, `stages` are the steps after that,
`networks` holds what they compute with, and `verdict` turns windows and scores into the answer.
"""
