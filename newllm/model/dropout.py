"""Random numbers of dropout, as a pure function of where they are used.

The noise of an element depends on the run's seed, the step, the place in the model, the row and
the channel, and on nothing else: splitting a batch into micro-batches, resuming a run or using
another kernel leaves it as it is (counter-based generators: Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"; the mixing function follows Wellons' lowbias32).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """The noise of one optimizer step."""

    seed: int
    step: int
    first_lane: int = 0
    """Lane of the whole batch that is lane 0 of this micro-batch."""

    @classmethod
    def drawn(cls) -> Noise:
        """Noise nobody asked to be reproducible, from torch's generator."""
        return cls(int(torch.randint(2**31, ())), 0)

    def keys(self, site: int) -> tuple[int, int]:
        """Two 32-bit keys of a place in the model (splitmix64 of seed, step and place)."""
        word = 0
        for part in (self.seed, self.step, site):
            word = (word ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
            word ^= word >> 31
        return word & _32_BITS, word >> 32


def threshold(share: float) -> int:
    """Bytes below this are dropped: the share, rounded to the nearest 1/256."""
    return round(share * 256)


def keep_scale(share: float) -> float:
    """What the kept elements are multiplied by."""
    return 256 / (256 - threshold(share))


def random_bytes(
    noise: Noise, site: int, shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Noise of every element of a [B, T, D] tensor: int64 in 0..255."""
    lanes, time, width = shape
    key, second_key = noise.keys(site)
    first = noise.first_lane * time * width
    x = torch.arange(first, first + lanes * time * width, device=device)
    x = x + key & _32_BITS
    x = (x ^ x >> 16) * 0x7FEB352D & _32_BITS
    x = (x ^ x >> 15) + second_key & _32_BITS
    x = (x ^ x >> 13) * 0x846CA68B & _32_BITS
    return (x >> 24).view(shape)


def dropout(x: Tensor, share: float, noise: Noise | None, site: int) -> Tensor:
    """Zero a share of the elements and scale up the rest (Srivastava et al. 2014).

    Args:
        x: [B, T, D].
        share: of the elements that are zeroed, rounded to the nearest 1/256.
        noise: of this step, or None for no dropout.
        site: number of the place in the model.
    """
    if noise is None or threshold(share) == 0:
        return x
    kept = random_bytes(noise, site, (x.shape[0], x.shape[1], x.shape[2]), x.device)
    return x * ((kept >= threshold(share)) * keep_scale(share)).to(x.dtype)
