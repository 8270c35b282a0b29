"""GRU and LSTM, with all the care that `ContextLM` has.

Shapes, and what is not said here, are in `residual.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from newllm.config import ModelSettings
from newllm.model.baselines.segments import Segments
from newllm.model.block import Block
from newllm.model.residual import ResidualLM, State, runs_on_numba


class GatedBlock(Block[Segments]):
    """A layer of torch's GRU (Cho et al. 2014, arXiv:1406.1078) or LSTM, as wide as the stream.

    The LSTM (Hochreiter & Schmidhuber 1997) starts out remembering: forget bias 1 (Jozefowicz et
    al. 2015). Recurrent matrices start orthogonal.
    """

    def __init__(self, kind: type[nn.GRU | nn.LSTM], embed_dim: int) -> None:
        super().__init__(embed_dim, None)
        self.rnn: nn.RNNBase = kind(embed_dim, embed_dim)
        weight_x, weight_h, bias_x, bias_h = self.rnn.all_weights[0]
        self._gates: int = weight_h.shape[0] // embed_dim
        self._names = ("hidden", "cell") if kind is nn.LSTM else ("hidden",)
        with torch.no_grad():
            nn.init.normal_(weight_x, std=embed_dim**-0.5)
            for piece in weight_h.chunk(self._gates):
                nn.init.orthogonal_(piece)
            bias_x.zero_()
            bias_h.zero_()
            if kind is nn.LSTM:
                bias_x[embed_dim : 2 * embed_dim] = 1.0

    def carries(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self._names, (self.rnn.hidden_size,))

    def mix(
        self, normed: Tensor, carried: list[Tensor], boundaries: Segments
    ) -> tuple[Tensor, list[Tensor]]:
        segments = boundaries
        first = [segments.first_states(part) for part in carried]
        rows = normed.flatten(0, 1)
        if runs_on_numba(rows):
            y, last = self._fused(rows, first, segments)
        else:
            y, last = self._plain(rows, first, segments)
        last = [segments.last_states(*parts) for parts in zip(last, carried, strict=True)]
        return y.view(normed.shape), last

    def _plain(
        self, rows: Tensor, first: list[Tensor], segments: Segments
    ) -> tuple[Tensor, list[Tensor]]:
        """torch's own, which is cuDNN's on a GPU."""
        dtype = self.rnn.all_weights[0][0].dtype
        packed = PackedSequence(rows[segments.token].to(dtype), torch.tensor(segments.counts))
        states = [part.to(dtype)[None] for part in first]
        # torch's LSTM reads bfloat16 only on CPUs that have its instructions.
        kind = rows.device.type
        with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
            out, last = self.rnn(packed, states[0] if len(states) == 1 else tuple(states))
        y = out.data.new_zeros(rows.shape).index_copy(0, segments.token, out.data)
        return y, [part[0] for part in (last if isinstance(last, tuple) else (last,))]

    def _fused(
        self, rows: Tensor, first: list[Tensor], segments: Segments
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
            rows, turned_weight, weight_h, bias, first[0], first[-1], segments, rows.dtype
        )
        return y, [memory] if len(first) == 1 else [hidden, memory]

    def mixing_matrices(self) -> Iterator[tuple[Tensor, int]]:
        for weight in self.rnn.all_weights[0][:2]:
            yield weight, self._gates


class _GatedLM(ResidualLM[Segments]):
    """x = rnn(norm(x)) in the first layer, x = x + rnn(norm(x)) in the others.

    A cell's output lies within -1..1: it could not outweigh the embedding, from which a tied head
    would predict the token just read.
    """

    FIRST_REPLACES = True
    KIND: ClassVar[type[nn.GRU | nn.LSTM]]

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        width = settings.embed_dim
        assert settings.context_dim == width, "the state of a GRU or LSTM is as wide as its stream"
        blocks = [GatedBlock(self.KIND, width) for _ in range(settings.num_layers)]
        super().__init__(settings, vocab_size, blocks)

    def _boundaries(
        self, ids: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> Segments:
        return Segments.cut(reset, lengths, ids.shape)

    def _boundaries_sent(
        self, ids: Tensor, reset: Tensor | None, lengths: Tensor | None, device: torch.device
    ) -> Segments:
        """How many segments there are, and how long, a GPU would be asked."""
        return Segments.cut(reset, lengths, ids.shape).to(device)


class GruLM(_GatedLM):
    """A stack of GRUs; the state is {"hidden": [L, B, C]}."""

    KIND = nn.GRU


class LstmLM(_GatedLM):
    """A stack of LSTMs; the state is "hidden" and "cell", [L, B, C] each."""

    KIND = nn.LSTM
