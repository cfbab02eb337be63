"""Where a Triton kernel is tested: on the GPU, or interpreted on the CPU where there is none."""

from __future__ import annotations

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
