"""Angles of positions where modeling code has no module for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WrittenRope(nn.Module):
    def forward(self, x: Tensor, ids_1T: Tensor, size: int, base: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[1, T, size / 2]` of position * base^(-2 i / size)."""
        powers_A = torch.arange(0, size, 2, dtype=torch.float32) / size
        angles_1TA = ids_1T.unsqueeze(-1).float() * (1.0 / base**powers_A)
        return angles_1TA.cos(), angles_1TA.sin()
