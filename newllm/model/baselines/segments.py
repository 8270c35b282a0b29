"""Rows with resets in the middle, cut into sequences that a GRU or an LSTM can run side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """The S sequences of a batch, and their N tokens laid out step by step.

    The longest sequences come first, so that those still running at a step are the first ones:
    the layout of torch's `PackedSequence`.
    """

    counts: list[int]
    """Sequences still running at each step; falling, in all N."""
    token: Tensor
    """Place of each row's token in the lanes laid end to end, [N]."""
    previous: Tensor
    """Row of the same sequence one step before, behind S rows of initial states, [N]."""
    last: Tensor
    """Row of each sequence's last token, [S]."""
    lane: Tensor
    """Lane that each sequence is in, [S]."""
    carries: Tensor
    """True where a sequence goes on from its lane's carried state, [S]."""
    final: Tensor
    """The sequence that each lane ends with, or -1 for a lane without tokens, [B]."""

    @classmethod
    def cut(cls, reset: Tensor | None, lengths: Tensor | None, shape: torch.Size) -> Segments:
        """Cut a [B, T] batch before every reset.

        Args:
            reset: True where a document starts, [B, T], or None for nowhere.
            lengths: only the first so many tokens of each lane are real, at least one of them in
                all; [B], or None for all.
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
        begin = starts.flatten().nonzero()[:, 0]  # [S], in the order of the lanes
        lane = begin // time
        lane_end = lane * time + ends[lane]
        # A sequence ends where the next one of its lane begins.
        following = torch.cat([begin[1:], lane_end[-1:]])
        length = torch.minimum(following, lane_end) - begin
        order = torch.argsort(length, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=device)
        begin, lane, length = begin[order], lane[order], length[order]

        step = torch.arange(int(length[0]), device=device)[:, None]
        running = step < length  # [steps, S]
        counts = running.sum(dim=1)
        first_row = counts.cumsum(0) - counts
        sequences = torch.arange(len(order), device=device)
        before = torch.cat([first_row.new_zeros(1), len(order) + first_row[:-1]])[:, None]
        in_lane = starts.sum(dim=1)
        final = rank[(in_lane.cumsum(0) - 1).clamp(min=0)]
        return cls(
            counts=counts.tolist(),
            token=(begin + step)[running],
            previous=(before + sequences)[running],
            last=first_row[length - 1] + sequences,
            lane=lane,
            carries=(begin % time == 0) & ~resets.flatten()[begin],
            final=torch.where(in_lane > 0, final, -1),
        )

    def first_states(self, carried: Tensor) -> Tensor:
        """State before each sequence, [S, C], from those the lanes carry, [B, C]."""
        return carried[self.lane] * self.carries[:, None]

    def last_states(self, states: Tensor, carried: Tensor) -> Tensor:
        """State after each lane, [B, C], from those after the sequences, [S, C]."""
        ended = states[self.final.clamp(min=0)]
        return torch.where((self.final >= 0)[:, None], ended, carried)
