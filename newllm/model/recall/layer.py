"""What a model makes of recall: one more input, and a score for copying what was found.

Shapes as in `residual.py`; K orders.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.device import send
from newllm.model.kernels import embedding, linear
from newllm.model.recall.reference import MOST_TIMES, ORDER_UNIT, ORDERS, TIMES_UNIT

FIRST_SCORE = -2.0
"""Score of copying at initialization, where the logits are about 0."""


class RecallLayer(nn.Module):
    """The learnt part. At initialization it adds nothing to the input.

    ::

        x      = embedding[token] + W embedding[candidate] + order[k] + times[n]   # before the norm
        score  = gate[k] . hidden + bias[k, n]
        logits = embedding . hidden;  logits[candidate] = ln(exp(logits[candidate]) + exp(score))

    for a candidate that followed the longest known context, of order k, n times in a row. Copying
    is one more entry of the one softmax, whose probability the candidate gets on top of its own: a
    word that no training row has is copied like any other. (A pointer network with one candidate:
    Merity et al. 2017, arXiv:1609.07843.)
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.project = nn.Parameter(torch.zeros(embed_dim, embed_dim))
        self.order = nn.Parameter(torch.zeros(len(ORDERS), embed_dim))
        self.times = nn.Parameter(torch.zeros(MOST_TIMES + 1, embed_dim))
        self.gate = nn.Parameter(torch.zeros(len(ORDERS), embed_dim))
        self.bias = nn.Parameter(torch.full((len(ORDERS), MOST_TIMES + 1), FIRST_SCORE))

    def added(self, matches: Tensor, words: Tensor) -> Tensor:
        """What is added to the embeddings `words` [V, D] of tokens with these matches: [..., D]."""
        if matches.device != words.device:
            return self._added_at_all(matches, words)
        found = matches > 0
        candidate, order, times = _parts(matches[found])
        # Each candidate is projected once, however often it is found.
        candidates, row = torch.unique(candidate, return_inverse=True)
        rows = F.embedding(row, F.linear(F.embedding(candidates, words), self.project))
        rows = rows + F.embedding(order, self.order) + F.embedding(times, self.times)
        return rows.new_zeros(*found.shape, rows.shape[-1]).index_put((found,), rows)

    def _added_at_all(self, matches: Tensor, words: Tensor) -> Tensor:
        """The same of matches on the CPU for a GPU, whose work must not depend on how many are."""
        none = matches == 0
        candidate, order, times = (part.masked_fill(none, -1) for part in _parts(matches))
        projected = linear(words, self.project)
        rows = embedding(projected, candidate)
        return embedding(self.times, times, embedding(self.order, order, rows))

    def copying(self, hidden: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates, and the score of copying them, [..., 1] both: -inf where none was found."""
        candidate, order, times = _parts(matches)
        bias = embedding(self.bias.view(-1, 1), order * (MOST_TIMES + 1) + times)
        candidate, order, none = (send(x, hidden.device) for x in (candidate, order, matches == 0))
        gates = F.linear(hidden, self.gate.to(hidden.dtype))
        gates = gates.to(torch.promote_types(hidden.dtype, torch.float32))
        score = gates.gather(-1, order[..., None]) + bias
        return candidate[..., None], score.masked_fill(none[..., None], -torch.inf)


def _parts(matches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates, numbers of their orders, times in a row."""
    matches = matches.long()
    order, rest = matches // ORDER_UNIT, matches % ORDER_UNIT
    return rest % TIMES_UNIT, order, rest // TIMES_UNIT
