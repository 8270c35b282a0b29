"""How GRU and LSTM read a batch: cut into segments that run side by side, step by step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from newllm.device import send_together


class Segments(NamedTuple):
    """A batch cut before every reset into S segments, which a GRU or an LSTM runs side by side, and
    their N tokens laid out step by step.

    The longest segments come first, so that those still running at a step are the first ones:
    the layout of torch's `PackedSequence`.
    """

    counts: list[int]
    """Sequences still running at each step; falling, in all N."""
    token: Tensor
    """Position of each token in the segments laid end to end, [N]."""
    previous: Tensor
    """Row of the same segment one step before, behind S rows of initial states, [N]."""
    last: Tensor
    """Row of each segment's last token, [S]."""
    sequence: Tensor
    """The sequence that each segment is a part of, [S]."""
    carries: Tensor
    """True where a segment goes on from its sequence's carried state, [S]."""
    final: Tensor
    """The segment that each sequence ends with, or -1 for a sequence without tokens, [B]."""

    @classmethod
    def cut(cls, reset: Tensor | None, lengths: Tensor | None, shape: torch.Size) -> Segments:
        """Cut a [B, T] batch before every reset.

        Args:
            reset: True where a document starts, [B, T], or None for nowhere.
            lengths: only the first so many tokens of each sequence are real, at least one of
                them in all; [B], or None for all.
            shape: B, T.
        """
        batch, time = shape
        device = (
            reset.device if reset is not None else lengths.device if lengths is not None else None
        )
        resets = torch.zeros(shape, dtype=torch.bool, device=device) if reset is None else reset
        starts = resets.clone()
        starts[:, 0] = True
        ends = torch.full((batch,), time, device=device) if lengths is None else lengths
        starts &= torch.arange(time, device=device) < ends[:, None]
        begin = starts.flatten().nonzero()[:, 0]  # [S], in the order of the sequences
        sequence = begin // time
        sequence_end = sequence * time + ends[sequence]
        # A segment ends where the next one of its sequence begins.
        following = torch.cat([begin[1:], sequence_end[-1:]])
        length = torch.minimum(following, sequence_end) - begin
        order = torch.argsort(length, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=device)
        begin, sequence, length = begin[order], sequence[order], length[order]

        step = torch.arange(int(length[0]), device=device)[:, None]
        running = step < length  # [steps, S]
        counts = running.sum(dim=1)
        first_row = counts.cumsum(0) - counts
        segments = torch.arange(len(order), device=device)
        before = torch.cat([first_row.new_zeros(1), len(order) + first_row[:-1]])[:, None]
        in_sequence = starts.sum(dim=1)
        final = rank[(in_sequence.cumsum(0) - 1).clamp(min=0)]
        return cls(
            counts=counts.tolist(),
            token=(begin + step)[running],
            previous=(before + segments)[running],
            last=first_row[length - 1] + segments,
            sequence=sequence,
            carries=(begin % time == 0) & ~resets.flatten()[begin],
            final=torch.where(in_sequence > 0, final, -1),
        )

    def to(self, device: torch.device) -> Segments:
        """The same with tensors on a device."""
        tensors = {name: x for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**send_together(tensors, device))

    def first_states(self, carried: Tensor) -> Tensor:
        """State before each segment, [S, C], from those the sequences carry, [B, C]."""
        return carried[self.sequence] * self.carries[:, None]

    def last_states(self, states: Tensor, carried: Tensor) -> Tensor:
        """State after each sequence, [B, C], from those after the segments, [S, C]."""
        ended = states[self.final.clamp(min=0)]
        return torch.where((self.final >= 0)[:, None], ended, carried)
