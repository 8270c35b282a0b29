"""Random numbers of dropout, as a pure function of where they are used.

The noise of an element depends on the run's seed, the step, the operation in the model, the
position and the channel, and on nothing else: splitting a batch into micro-batches, resuming a run
or using another kernel leaves it as it is (counter-based generators: Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"; the mixing function follows Wellons' lowbias32).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from newllm.device import send

_32_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """The noise of one optimizer step."""

    seed: int
    step: int
    first_sequence: int = 0
    """Sequence of the whole batch that is the first one of this micro-batch."""
    sites: int = 0
    """Operations that draw, where they are done by a GPU."""
    sent: Tensor | None = field(default=None, compare=False)
    """`table()` where the operations are done, if it is there already."""

    @classmethod
    def drawn(cls) -> Noise:
        """Noise from torch's generator, where no seed and step are given."""
        return cls(int(torch.randint(2**31, ())), 0)

    def table(self) -> Tensor:
        """The keys of every operation, int32 [sites, 2]."""
        keys = np.array([self.keys(site) for site in range(self.sites)], np.uint32)
        return torch.from_numpy(keys.view(np.int32))

    def keys_on(self, device: torch.device) -> Tensor:
        """`table()` on a GPU; copied once, without a wait."""
        if self.sent is None:
            object.__setattr__(self, "sent", send(self.table(), device))
        assert self.sent is not None
        return self.sent

    def keys(self, site: int) -> tuple[int, int]:
        """Two 32-bit keys of an operation (splitmix64 of seed, step and its number)."""
        word = 0
        for part in (self.seed, self.step, site):
            word = (word ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
            word ^= word >> 31
        return word & _32_BITS, word >> 32


def threshold(p: float) -> int:
    """Random bytes below this drop their element: p, rounded to the nearest 1/256."""
    return round(p * 256)


def keep_scale(p: float) -> float:
    """What the kept elements are multiplied by."""
    return 256 / (256 - threshold(p))


def random_bytes(
    noise: Noise, site: int, shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Noise of every element of a [B, T, D] tensor: int64 in 0..255."""
    batch, time, width = shape
    key, second_key = noise.keys(site)
    if noise.sent is not None:  # where numbers of the host would stay what they are
        key, second_key = (noise.sent[site].long() & _32_BITS).unbind()
    first = noise.first_sequence * time * width
    x = torch.arange(first, first + batch * time * width, device=device)
    x = x + key & _32_BITS
    x = (x ^ x >> 16) * 0x7FEB352D & _32_BITS
    x = (x ^ x >> 15) + second_key & _32_BITS
    x = (x ^ x >> 13) * 0x846CA68B & _32_BITS
    return (x >> 24).view(shape)


def dropout(x: Tensor, p: float, noise: Noise | None, site: int) -> Tensor:
    """Zero elements with probability p and scale up the rest (Srivastava et al. 2014).

    Args:
        x: [B, T, D].
        p: probability of an element to be zeroed, rounded to the nearest 1/256.
        noise: of this step, or None for no dropout.
        site: number of this dropout in the model.
    """
    if noise is None or threshold(p) == 0:
        return x
    kept = random_bytes(noise, site, (x.shape[0], x.shape[1], x.shape[2]), x.device)
    return x * ((kept >= threshold(p)) * keep_scale(p)).to(x.dtype)
