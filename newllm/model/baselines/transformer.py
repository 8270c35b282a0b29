"""The transformer beside `ContextLM`: attention over a sliding window, with a state of fixed size.

Pre-norm blocks with rotary positions (Su et al. 2021, arXiv:2104.09864) and multi-head attention to
the token itself and the 256 before it. What earlier calls left of those is carried as in
Transformer-XL (Dai et al. 2019, arXiv:1901.02860). Queries and keys are normalised (Henry et al.
2020, arXiv:2010.04245), which bears larger learning rates. Shapes as in
`residual.py`; H heads of size P.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.block import Block, projection
from newllm.model.kernels import EPSILON
from newllm.model.residual import ResidualLM, State

WINDOW = 256
"""Tokens before a token that it can see."""

LARGEST_HEAD = 64
_QUERIES_AT_ONCE = 256
_ROTARY_BASE = 10_000.0
_SHARPNESS = 1.44
"""Length of the normalised queries at initialization."""


def head_size(context_dim: int) -> int:
    """Channels of a head: 64, or the largest power of two below it that divides the width."""
    return math.gcd(LARGEST_HEAD, context_dim)


class View(NamedTuple):
    """What each token of a call can see. Columns are the `past` carried tokens, then the T own."""

    past: int
    """Carried tokens that some sequence can see; on a GPU, which would have to be asked, all."""
    first: Tensor
    """First column that each token sees; the last one is its own; [B, T]."""
    lengths: Tensor | None
    """Tokens of each sequence that count, [B], or None for all T."""
    seen: Tensor
    """Tokens of its document that each sequence carries on, at most 256, [B]."""

    @classmethod
    def make(cls, seen: Tensor, reset: Tensor | None, lengths: Tensor | None, time: int) -> View:
        """For T tokens after a state of which each sequence's last `seen` are visible, [B]."""
        steps = torch.arange(time, device=seen.device)
        # Where each token's document starts, counted from the first own token.
        start = -seen[:, None].expand(-1, time + 1)  # [B, 1 + T]
        if reset is not None:
            start = torch.cat([start[:, :1], torch.where(reset, steps, -WINDOW)], dim=1)
            start = start.cummax(dim=1).values
        past = WINDOW if seen.device.type == "cuda" else int(-start[:, 1].min())
        first = torch.maximum(start[:, 1:], steps - WINDOW) + past
        ends = torch.full_like(seen, time) if lengths is None else lengths
        last_start = start.gather(1, ends[:, None])[:, 0]
        return cls(past, first, lengths, (ends - last_start).clamp(max=WINDOW))

    def carry(self, columns: Tensor) -> Tensor:
        """The last 256 columns of each sequence, zero where they are not visible: [B, 256, C]."""
        if self.lengths is None:
            kept = columns[:, -WINDOW:]
        else:
            steps = torch.arange(WINDOW, device=columns.device)
            column = (self.lengths[:, None] + self.past - WINDOW + steps).clamp(min=0)
            kept = columns.gather(1, column[:, :, None].expand(-1, -1, columns.shape[2]))
        count = kept.shape[1]
        visible = torch.arange(count, 0, -1, device=columns.device) <= self.seen[:, None]
        return F.pad(kept * visible[:, :, None], (0, 0, WINDOW - count, 0))


class AttentionBlock(Block[View]):
    """Causal attention, then a feed-forward; `context_dim` is the width of all heads together."""

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.in_proj = projection(embed_dim, 3 * context_dim)
        self.query_scale = nn.Parameter(torch.full((head_size(context_dim),), _SHARPNESS))
        self.out_proj = projection(context_dim, embed_dim, zero=True)

    def carries(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("keys", "values"), (WINDOW, self.out_proj.in_features))

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: View
    ) -> tuple[Tensor, list[Tensor]]:
        view = boundaries
        queries, keys, values = self.in_proj(normed).chunk(3, dim=-1)
        queries, keys = _norm_heads(queries, self.query_scale), _norm_heads(keys, None)
        past = view.past
        if past:
            keys, values = (
                torch.cat([old[:, -past:].to(new.dtype), new], dim=1)
                for old, new in zip(carried, (keys, values), strict=True)
            )
        parts = []
        for start in range(0, queries.shape[1], _QUERIES_AT_ONCE):
            stop = min(start + _QUERIES_AT_ONCE, queries.shape[1])
            lowest = max(0, past + start - WINDOW)
            columns = slice(lowest, past + stop)
            first = view.first[:, start:stop] - lowest
            parts.append(
                attend(queries[:, start:stop], keys[:, columns], values[:, columns], first)
            )
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.out_proj(y), [view.carry(keys), view.carry(values)]

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        yield self.in_proj.weight, 3
        yield self.out_proj.weight, 1


class TransformerLM(ResidualLM[View]):
    """A stack of attention blocks.

    The state is "keys" (normalised, before rotation) and "values" of the last 256 tokens,
    [L, B, 256, C] each, and "seen", how many of them are visible, [1, B].
    """

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [AttentionBlock(*widths) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks)

    def initial_state(self, batch_size: int) -> State:
        """Nothing is visible before the first token."""
        seen = torch.zeros(1, batch_size, dtype=torch.long, device=self.embedding.weight.device)
        return {**super().initial_state(batch_size), "seen": seen}

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> View:
        return View.make(state["seen"][0], reset, lengths, ids.shape[1])

    def _carried_on(self, state: State, boundaries: View) -> State:
        return {"seen": boundaries.seen[None]}


def _norm_heads(x: Tensor, weight: Tensor | None) -> Tensor:
    """[B, T, C], every head of it normalised."""
    size = head_size(x.shape[2])
    heads = F.layer_norm(x.unflatten(-1, (-1, size)), (size,), weight, eps=EPSILON)
    return heads.flatten(2).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, first: Tensor) -> Tensor:
    """Causal attention of the last T of K tokens to the columns from `first` on.

    Args:
        queries: [B, T, C]; keys, values: [B, K, C]; all before rotation.
        first: column of the first key that a query sees, [B, T]; the last one is its own.

    Returns:
        [B, T, C].
    """
    cos, sin = rotary_angles(keys)
    time, columns = queries.shape[1], keys.shape[1]
    size, dtype = head_size(queries.shape[2]), queries.dtype
    if queries.device.type == "cpu":  # where bfloat16 products of small heads are slow
        wide = torch.promote_types(dtype, torch.float32)
        queries, keys, values = queries.to(wide), keys.to(wide), values.to(wide)
    q, k, v = (x.unflatten(-1, (-1, size)).transpose(1, 2) for x in (queries, keys, values))
    column = torch.arange(columns, device=keys.device)
    visible = (column >= first[:, :, None]) & (column <= column[columns - time :, None])
    y = F.scaled_dot_product_attention(
        _rotate(q, cos[columns - time :], sin[columns - time :]),
        _rotate(k, cos, sin),
        v,
        attn_mask=visible[:, None],
    )
    return y.transpose(1, 2).flatten(2).to(dtype)


def rotary_angles(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which the pairs of a head are turned in each column, [K, P / 2]."""
    half = head_size(keys.shape[2]) // 2
    steps = torch.arange(keys.shape[1], device=keys.device, dtype=torch.float64)
    rates = _ROTARY_BASE ** -(torch.arange(half, device=keys.device, dtype=torch.float64) / half)
    angles = steps[:, None] * rates
    dtype = torch.promote_types(keys.dtype, torch.float32)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + P / 2) of [B, H, K, P]."""
    left, right = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
