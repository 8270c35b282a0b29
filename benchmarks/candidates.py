"""Other memories than `context`'s, in the same stack: what the bake-off trains beside it.

They are no part of the package: `python -m benchmarks.candidates NAME train ...` is `newllm
train ...` with the blocks of `--architecture context` replaced by the candidate's. All share its
widths, read-out (normalised, gated, gates open at initialization), convolution, feed-forward and
bigram hash embedding.
"""

from __future__ import annotations

import math
import runpy
import sys
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import candidate_kernels
from newllm.config import ModelSettings
from newllm.model.block import Boundaries
from newllm.model.context import CONV_TAPS, group_size
from newllm.model.context.lm import LONGEST_MEMORY, SHORTEST_MEMORY, ContextBlock, ContextLM
from newllm.model.kernels import EPSILON
from newllm.model.spec import SPECS

KEYS, VALUES = 16, 32
"""Rows and columns of a head's matrix memory: half as many keys as values, so that query, key,
value and gate have together the three context sizes that `context` projects to."""


class _Block(ContextBlock):
    """What the candidates share: the convolution before the memory, the read-out behind it."""

    MATRIX = False
    """Whether a head's memory is a matrix."""

    def carries(self) -> dict[str, tuple[int, ...]]:
        carried = super().carries()
        (channels,) = carried["context"]
        matrix = {"context": (channels // VALUES, KEYS, VALUES)} if self.MATRIX else {}
        return {**carried, **matrix}

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: Boundaries
    ) -> tuple[Tensor, list[Tensor]]:
        memory, tail = carried
        batch, time, _ = normed.shape
        reset, lengths = boundaries.starts(), boundaries.ends()
        projected = self.in_proj(normed).float()
        write, middle, gate = projected.chunk(3, dim=2)
        value, tail = convolve(write, self.conv_weight, reset, lengths, tail)
        out, memory = self.remember(value, middle, reset, lengths, memory)
        group = VALUES if self.MATRIX else group_size(out.shape[2])
        groups = F.layer_norm(out.reshape(batch, time, -1, group), (group,), eps=EPSILON)
        read = groups.flatten(-2) * self.read_scale * F.silu(gate + self.read_bias)
        return self.out_proj(read.to(normed.dtype)), [memory, tail]

    def remember(
        self, value: Tensor, middle: Tensor, reset: Tensor, lengths: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is read of the memory, [B, T, ...], and the memory behind the last token.

        Args:
            value: what is written, [B, T, C].
            middle: what `in_proj` gives besides writes and gates, [B, T, C].
            reset: True where a document starts, [B, T].
            lengths: tokens of each sequence, [B].
            memory: before the first token.
        """
        raise NotImplementedError


class DiagonalGates(_Block):
    """Forget gates that see their own number of the context."""

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, context_dim, hidden_dim)
        self.gate_weight = nn.Parameter(torch.zeros(context_dim))

    def remember(
        self, value: Tensor, middle: Tensor, reset: Tensor, lengths: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        forget = middle + self.forget_bias
        return candidate_kernels.diagonal(value, forget, self.gate_weight, reset, lengths, memory)


class Hgrn2(_Block):
    """A matrix for each head, decayed by rows (arXiv:2404.07904)."""

    MATRIX = True

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, context_dim, hidden_dim)
        # Half as many rows as channels, with the same range of memories.
        self.forget_bias = nn.Parameter(self.forget_bias.detach()[::2].clone())

    def remember(
        self, value: Tensor, middle: Tensor, reset: Tensor, lengths: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        forget, query = middle.chunk(2, dim=2)
        forget = torch.sigmoid(forget + self.forget_bias)
        query, forget = (x.unflatten(2, (-1, KEYS)).contiguous() for x in (query, forget))
        return candidate_kernels.hgrn2(query, forget, by_head(value), reset, lengths, memory)


class GatedDelta(_Block):
    """A matrix for each head, of which a key's old value is replaced (arXiv:2412.06464)."""

    MATRIX = True

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        heads = context_dim // VALUES
        # Two numbers a head more than the others project to: as many fewer in the feed-forward.
        super().__init__(embed_dim, context_dim, hidden_dim - heads)
        self.rates_proj = nn.Parameter(torch.randn(2 * heads, embed_dim) * embed_dim**-0.5)
        # One decay a head, with the same range of memories.
        shortest, longest = math.log(SHORTEST_MEMORY - 1), math.log(LONGEST_MEMORY - 1)
        self.forget_bias = nn.Parameter(torch.linspace(shortest, longest, heads))

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: Boundaries
    ) -> tuple[Tensor, list[Tensor]]:
        bias = torch.cat([self.forget_bias, torch.zeros_like(self.forget_bias)])
        self._rates = torch.sigmoid(F.linear(normed, self.rates_proj).float() + bias)
        return super().mix(normed, carried, boundaries)

    def remember(
        self, value: Tensor, middle: Tensor, reset: Tensor, lengths: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        key, query = (x.unflatten(2, (-1, KEYS)) for x in middle.chunk(2, dim=2))
        key = F.normalize(F.silu(key), dim=3)
        decay, rate = (x.contiguous() for x in self._rates.chunk(2, dim=2))
        return candidate_kernels.gated_delta(
            query.contiguous(), key, by_head(value), decay, rate, reset, lengths, memory
        )


class NoConvolution(ContextBlock):
    """`context` without its short convolution: a filter that passes the token alone."""

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, context_dim, hidden_dim)
        passing = self.conv_weight.detach()
        del self.conv_weight
        self.register_buffer("conv_weight", passing)


CANDIDATES: dict[str, type[ContextBlock]] = {
    "no_convolution": NoConvolution,
    "diagonal_gates": DiagonalGates,
    "hgrn2": Hgrn2,
    "gated_delta": GatedDelta,
}


class CandidateLM(ContextLM):
    """`ContextLM` with other blocks; none of its fast paths of one token at a time."""

    def __init__(self, block: type[ContextBlock], settings: ModelSettings, vocab_size: int) -> None:
        super().__init__(settings, vocab_size)
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [block(*widths) for _ in range(settings.num_layers)]
        self.blocks, self._carried = nn.ModuleList(blocks), blocks[0].carries()


def by_head(value: Tensor) -> Tensor:
    """[B, T, C] -> [B, T, H, VALUES]."""
    return value.unflatten(2, (-1, VALUES)).contiguous()


def convolve(
    write: Tensor, weight: Tensor, reset: Tensor, lengths: Tensor, tail: Tensor
) -> tuple[Tensor, Tensor]:
    """The short convolution of `context_read`, which is a part of its kernel there.

    Returns:
        what is written, [B, T, C], and the last three writes, newest first, [B, 3, C].
    """
    taps, time = CONV_TAPS - 1, write.shape[1]
    row = torch.cat([tail.flip(1), write], dim=1)  # [B, 3 + T, C]
    document = F.pad(reset.long().cumsum(dim=1), (taps, 0))  # [B, 3 + T]
    value = torch.zeros_like(write)
    for age in range(CONV_TAPS):
        past = slice(taps - age, taps - age + time)
        seen = document[:, past] == document[:, taps:]
        value = value + weight[age] * row[:, past] * seen[:, :, None]
    newest = taps + lengths[:, None] - 1  # [B, 1]
    places = newest - torch.arange(taps)
    seen = document.gather(1, places) == document.gather(1, newest)
    last = row.gather(1, places[:, :, None].expand(-1, -1, row.shape[2])) * seen[:, :, None]
    return value.contiguous(), last


def install(name: str) -> None:
    """Let `--architecture context` build a candidate in this process."""
    build = partial(CandidateLM, CANDIDATES[name])
    SPECS["context"] = replace(SPECS["context"], load=lambda: build)


if __name__ == "__main__":
    install(sys.argv.pop(1))
    runpy.run_module("newllm", run_name="__main__")
