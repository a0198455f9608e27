"""The angles that rotary position embedding turns by."""

import torch
from torch import Tensor


def cos_sin_table(max_len: int, head_dim: int, *, base: float = 10_000.0, device: torch.device | str) -> Tensor:
    """Cosines then sines of every position's angles, shape (max_len, head_dim), float32."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(max_len, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=1).float().to(device)
