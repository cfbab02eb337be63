"""Tools for adapter files: describe, measure, convert and bake.

No server is needed and, except for `bake`, no base: a PEFT folder in, facts or another PEFT folder
out.
"""
