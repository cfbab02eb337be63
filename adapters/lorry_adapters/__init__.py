"""What an adapter is: its files, its tensors, its names, and the batch it runs in.

Knows nothing of HTTP, requests or scheduling; `adapters/README.md` has the tour.
"""
