"""Adapters as things with names: uploaded, verified, stored, leased and removed."""
