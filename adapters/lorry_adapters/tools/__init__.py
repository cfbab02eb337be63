"""What can be done with adapters as files: described, measured, converted, baked.

No server and, but for `bake`, no base model: a PEFT folder in, facts or another PEFT folder out.
"""
