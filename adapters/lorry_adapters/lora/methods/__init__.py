"""PEFT's methods, one file each: the config, the tensors that it saves, and their effect."""
