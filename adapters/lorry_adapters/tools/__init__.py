"""Tools for adapter files: describe, measure, convert and bake.

No server and, but for `bake`, no base model: a PEFT folder in, facts or another PEFT folder out.
"""
