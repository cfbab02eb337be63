"""The compiled step: a whole step of an int8 model in one call of compiled code.

`step.c` is built when Lorry is installed, where a C compiler is at hand, once for
each instruction set of `recipe`. Without it, or for another model, the generic path
serves; which one it is stands in `/info` and in the lines at start-up.
"""
