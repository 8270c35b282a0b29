"""What a token means after the one before it: a table that hashed pairs of tokens look up.

A row of the table costs a look-up where a matrix of as many numbers costs a product: per parameter
it is the cheapest memory there is. The idea is fastText's hashed n-grams (Joulin et al. 2016,
arXiv:1607.01759), as input to a language model. Shapes as in `residual.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAIR_DIM = 16
"""Numbers in a row of the table; one matrix widens them to the stream."""

PREVIOUS_FACTOR, TOKEN_FACTOR, HASH_SHIFT = 0x9E3779B1, 0x85EBCA77, 15


class PairTable(nn.Module):
    """W_pair table[hash(previous, token)]; zero at birth."""

    def __init__(self, rows: int, embed_dim: int, std: float) -> None:
        """A table of so many rows.

        Args:
            rows: rows; several pairs may share one.
            embed_dim: D.
            std: of what a row of unit variance adds to an embedding.
        """
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, PAIR_DIM))
        self.widen = nn.Parameter(torch.randn(PAIR_DIM, embed_dim) * std * PAIR_DIM**-0.5)

    def forward(self, ids: Tensor, previous: Tensor) -> Tensor:
        """[B, T, D] of tokens [B, T] after `previous`, [B, T]: one more than their ids, 0 for none.

        Nothing is added where there is no previous token.
        """
        mixed = previous * PREVIOUS_FACTOR + ids * TOKEN_FACTOR
        rows = F.embedding((mixed >> HASH_SHIFT) % len(self.table), self.table)
        return (rows * (previous > 0)[:, :, None]) @ self.widen


def previous_tokens(ids: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """The token before each one, as one more than its id; 0 at the start of a document.

    Args:
        ids: [B, T].
        before: that of the first one, [B].
        reset: True where a document starts, [B, T], or None for nowhere.
    """
    previous = torch.cat([before[:, None], ids[:, :-1] + 1], dim=1)
    return previous if reset is None else previous.masked_fill(reset, 0)


def last_tokens(ids: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """What `before` is to the next call, [B]; lanes of which no token is read keep theirs."""
    if lengths is None:
        return ids[:, -1] + 1
    last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0] + 1
    return torch.where(lengths > 0, last, before)
