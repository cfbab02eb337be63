"""Finds calls in an answer's text. Each family of models has its own notation for them.

The readers are written by hand, since those of other servers depend on their tokens and chunks.
These read text piece by piece, and their results do not depend on how it was cut. A call is
reported as soon as its name is certain, and its arguments as they come.
"""
