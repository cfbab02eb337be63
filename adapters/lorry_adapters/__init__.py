"""Adapters: their files, tensors and names, and their computation in a batch.

Knows nothing of HTTP, requests or scheduling; `adapters/README.md` has the tour.
"""
