"""Calls in an answer's text: each family of models writes them in a notation of its own.

Written here by hand, since what other servers have is bound to their tokens and chunks: these
readers go through text, piece by piece, and what they find does not depend on how it was cut.
A call is told as soon as its name is certain, and its arguments as they come.
"""
