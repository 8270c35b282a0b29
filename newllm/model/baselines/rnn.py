"""The recurrent peers of `ContextLM`: GRU, LSTM and minGRU, with all the care it has.

Shapes, and what is not said here, are in `residual.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from newllm.config import ModelSettings
from newllm.model.baselines.segments import Segments
from newllm.model.context.lm import LONGEST_MEMORY, SHORTEST_MEMORY
from newllm.model.kernels import Noise
from newllm.model.residual import Block, ResidualLM, State, projection, runs_on_numba


class GatedBlock(Block):
    """A layer of torch's GRU (Cho et al. 2014, arXiv:1406.1078) or LSTM, as wide as the stream.

    The LSTM (Hochreiter & Schmidhuber 1997) starts out remembering: forget bias 1 (Jozefowicz et
    al. 2015). Recurrent matrices start orthogonal.
    """

    def __init__(self, kind: type[nn.GRU | nn.LSTM], embed_dim: int) -> None:
        super().__init__(embed_dim, None)
        self.rnn: nn.RNNBase = kind(embed_dim, embed_dim)
        weight_x, weight_h, bias_x, bias_h = self.rnn.all_weights[0]
        self._gates: int = weight_h.shape[0] // embed_dim
        with torch.no_grad():
            nn.init.normal_(weight_x, std=embed_dim**-0.5)
            for piece in weight_h.chunk(self._gates):
                nn.init.orthogonal_(piece)
            bias_x.zero_()
            bias_h.zero_()
            if kind is nn.LSTM:
                bias_x[embed_dim : 2 * embed_dim] = 1.0

    def mix(
        self, normed: Tensor, carried: list[Tensor], places: Segments
    ) -> tuple[Tensor, list[Tensor]]:
        first = [places.first_states(part) for part in carried]
        rows = normed.flatten(0, 1)
        if runs_on_numba(rows):
            y, last = self._fused(rows, first, places)
        else:
            y, last = self._plain(rows, first, places)
        last = [places.last_states(*parts) for parts in zip(last, carried, strict=True)]
        return y.view(normed.shape), last

    def _plain(
        self, rows: Tensor, first: list[Tensor], places: Segments
    ) -> tuple[Tensor, list[Tensor]]:
        """torch's own, which is cuDNN's on a GPU."""
        dtype = self.rnn.all_weights[0][0].dtype
        packed = PackedSequence(rows[places.token].to(dtype), torch.tensor(places.counts))
        states = [part.to(dtype)[None] for part in first]
        # torch's LSTM reads bfloat16 only on CPUs that have its instructions.
        kind = rows.device.type
        with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
            out, last = self.rnn(packed, states[0] if len(states) == 1 else tuple(states))
        y = out.data.new_zeros(rows.shape).index_copy(0, places.token, out.data)
        return y, [part[0] for part in (last if isinstance(last, tuple) else (last,))]

    def _fused(
        self, rows: Tensor, first: list[Tensor], places: Segments
    ) -> tuple[Tensor, list[Tensor]]:
        """The same in a fraction of the time, and with the state in fp32."""
        from newllm.model.baselines import rnn_cpu as cells  # numba: half a second to import

        weight_x, weight_h, bias_x, bias_h = self.rnn.all_weights[0]
        width = rows.shape[1]
        rest = 4 * width - len(bias_x)
        # The kernel wants a GRU's new gate, which the hidden state enters on its own, first.
        turned_weight, turned_bias = (x.roll(width, 0) if rest else x for x in (weight_x, bias_x))
        bias = F.pad(turned_bias, (0, rest)) + F.pad(bias_h, (rest, 0))
        y, hidden, memory = cells.gated_cell(
            rows, turned_weight, weight_h, bias, first[0], first[-1], places, rows.dtype
        )
        return y, [memory] if len(first) == 1 else [hidden, memory]

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        for weight in self.rnn.all_weights[0][:2]:
            yield weight, self._gates


class _GatedLM(ResidualLM):
    """x = rnn(norm(x)) in the first layer, x = x + rnn(norm(x)) in the others.

    A cell's output lies within -1..1: it could not outweigh the embedding, from which a tied head
    would predict the token just read.
    """

    FIRST_REPLACES = True
    KIND: ClassVar[type[nn.GRU | nn.LSTM]]
    CARRIED: ClassVar[tuple[str, ...]]

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        width = settings.embed_dim
        assert settings.context_dim == width, "the state of a GRU or LSTM is as wide as its stream"
        blocks = [GatedBlock(self.KIND, width) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks, dict.fromkeys(self.CARRIED, (width,)))

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        return self._run(ids, state, Segments.cut(reset, lengths, ids.shape), noise)


class GruLM(_GatedLM):
    """A stack of GRUs; the state is {"hidden": [L, B, C]}."""

    KIND, CARRIED = nn.GRU, ("hidden",)


class LstmLM(_GatedLM):
    """A stack of LSTMs; the state is "hidden" and "cell", [L, B, C] each."""

    KIND, CARRIED = nn.LSTM, ("hidden", "cell")


class MinGruBlock(Block):
    """minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201), then feed-forward.

    Its gate starts with the memories of `ContextLM`, spread between the same time scales.
    """

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.in_proj = projection(embed_dim, 2 * context_dim)
        scales = torch.linspace(math.log(SHORTEST_MEMORY), math.log(LONGEST_MEMORY), context_dim)
        self.gate_bias = nn.Parameter(-torch.log(scales.exp() - 1))
        self.out_proj = projection(context_dim, embed_dim, zero=True)

    def mix(
        self, normed: Tensor, carried: list[Tensor], places: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        hidden, last = min_gru(self.in_proj(normed), self.gate_bias, *places, carried[0])
        return self.out_proj(hidden), [last]

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        yield self.in_proj.weight, 2
        yield self.out_proj.weight, 1


class MinGruLM(ResidualLM):
    """A stack of minGRU blocks; the state is {"hidden": [L, B, C]}."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        widths = settings.embed_dim, settings.context_dim, settings.hidden_dim
        blocks = [MinGruBlock(*widths) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks, {"hidden": (settings.context_dim,)})

    def _read(
        self,
        ids: Tensor,
        state: State,
        reset: Tensor | None,
        lengths: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        if reset is None:
            reset = torch.zeros_like(ids, dtype=torch.bool)
        if lengths is None:
            lengths = torch.full_like(ids[:, 0], ids.shape[1])
        return self._run(ids, state, (reset, lengths), noise)


def min_gru(
    projected: Tensor, bias: Tensor, reset: Tensor, lengths: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = (1 - z_t) h_{t-1} + z_t n_t, with z_t = sigmoid(g_t + bias); nothing passes a reset.

    Args:
        projected: g and n, [B, T, 2 C].
        bias: [C].
        reset: True where a new document starts, [B, T].
        lengths: only the first so many tokens of each lane are read, [B].
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
