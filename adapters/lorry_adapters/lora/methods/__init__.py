"""PEFT's methods, a file each: what its config says, which tensors it saves, what they do."""
