"""Everything that decides a verdict, in one process and without Ray.

`detector.Detector` runs the stages in order. `audio` turns a file into samples, `stages` are the steps after that,
`networks` holds the networks that the stages use, and `verdict` turns windows and scores into the answer.
"""
