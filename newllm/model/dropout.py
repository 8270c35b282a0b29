"""Dropout whose random numbers are cheap on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share of the elements and scale up the rest (Srivastava et al. 2014).

    On a CPU torch draws one 64-bit random number an element; here one such number serves eight
    elements, a byte each, so the share is rounded to the nearest 1/256. The draws come from torch's
    generator, so that saving its state is enough to resume exactly.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.threshold = round(share * 256)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape; the identity in evaluation mode."""
        if not self.training or self.threshold == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        noise = words.random_(-(2**63), 2**63 - 1).view(torch.uint8)[: x.numel()].view(x.shape)
        scale = 256 / (256 - self.threshold)
        return x * (noise >= self.threshold).to(x.dtype).mul_(scale)

    def extra_repr(self) -> str:
        return f"share={self.threshold / 256:.4f}"
