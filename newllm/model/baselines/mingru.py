"""minGRU, the baseline nearest to `ContextLM`: a gated linear recurrence, and no more.

Shapes, and what is not said here, are in `residual.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.block import Block, Boundaries, projection
from newllm.model.context.lm import LONGEST_MEMORY, SHORTEST_MEMORY
from newllm.model.residual import ResidualLM, State, runs_on_numba


class MinGruBlock(Block[Boundaries]):
    """minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201), then feed-forward.

    Its gate starts with the memories of `ContextLM`, spread between the same time scales.
    """

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.in_proj = projection(embed_dim, 2 * context_dim)
        scales = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), context_dim)
        self.gate_bias = nn.Parameter(-torch.log(scales.exp() - 1))
        self.out_proj = projection(context_dim, embed_dim, zero=True)

    def carries(self) -> dict[str, tuple[int, ...]]:
        return {"hidden": tuple(self.gate_bias.shape)}

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: Boundaries
    ) -> tuple[Tensor, list[Tensor]]:
        edges = boundaries.starts(), boundaries.ends()
        hidden, last = min_gru(self.in_proj(normed), self.gate_bias, *edges, carried[0])
        return self.out_proj(hidden), [last]

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        yield self.in_proj.weight, 2
        yield self.out_proj.weight, 1


class MinGruLM(ResidualLM[Boundaries]):
    """A stack of minGRU blocks; the state is {"hidden": [L, B, C]}."""

    STEADY = True

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [MinGruBlock(*widths) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks)

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> Boundaries:
        return Boundaries(reset, lengths, ids)


def min_gru(
    projected: Tensor, bias: Tensor, reset: Tensor, lengths: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = (1 - z_t) h_{t-1} + z_t n_t, with z_t = sigmoid(g_t + bias); nothing passes a reset.

    Args:
        projected: g and n, [B, T, 2 C].
        bias: [C].
        reset: True where a new document starts, [B, T].
        lengths: only the first so many tokens of each sequence are read, [B].
        hidden: h before the first token, [B, C].

    Returns:
        h [B, T, C] in the type of `projected` (anything where no token is read), and the last h
        [B, C] in fp32 (float64 if `projected` is).
    """
    if runs_on_numba(projected):
        from newllm.model.baselines import mingru_cpu

        return mingru_cpu.min_gru(projected, bias, reset, lengths, hidden)
    dtype = torch.promote_types(projected.dtype, torch.float32)
    gate, new = projected.to(dtype).chunk(2, dim=-1)  # [B, T, C] each
    time = projected.shape[1]
    read = torch.arange(time, device=lengths.device) < lengths[:, None]  # [B, T]
    z = torch.sigmoid(gate + bias) * read[:, :, None]
    keep = (1 - z) * ~(reset & read)[:, :, None]
    h = z * new
    h = torch.cat([h[:, :1] + keep[:, :1] * hidden[:, None].to(dtype), h[:, 1:]], dim=1)
    # Prefix sums in log2(T) passes (Hillis & Steele 1986): `h` and `keep` sum up `span` steps.
    span = 1
    while span < time:
        h = h + keep * F.pad(h, (0, 0, span, 0))[:, :time]
        keep = keep * F.pad(keep, (0, 0, span, 0))[:, :time]
        span *= 2
    return h.to(projected.dtype), h[:, -1]
