"""Adapters with names: uploaded, verified, stored, leased and removed."""
