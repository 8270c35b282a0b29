"""What a model makes of recall: one more input, and a score for copying what was found.

Shapes as in `residual.py`; K orders.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.model.kernels import Facts, embedding, linear, sent
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

    def added(self, facts: Facts, words: Tensor) -> Tensor:
        """What is added to the embeddings `words` [V, D] of tokens: [..., D].

        `facts` have the tokens' "matches", or what :func:`spread` made of them.
        """
        if "candidate_rows" in facts:
            return self._added_at_all(facts, words)
        matches = facts["matches"]
        found = matches > 0
        candidate, order, times = _parts(matches[found])
        # Each candidate is projected once, however often it is found.
        candidates, row = torch.unique(candidate, return_inverse=True)
        rows = F.embedding(row, F.linear(F.embedding(candidates, words), self.project))
        rows = rows + F.embedding(order, self.order) + F.embedding(times, self.times)
        return rows.new_zeros(*found.shape, rows.shape[-1]).index_put((found,), rows)

    def _added_at_all(self, facts: Facts, words: Tensor) -> Tensor:
        """The same for a GPU, whose work must not depend on how many matches there are."""
        places = facts["candidate_rows"]
        if places.numel() < len(words):  # a few tokens: their candidates alone are projected
            rows = linear(embedding(words, places, holes=True), self.project)
        else:
            rows = embedding(linear(words, self.project), places, holes=True)
        rows = embedding(self.order, facts["order_rows"], rows, holes=True)
        return embedding(self.times, facts["times_rows"], rows, holes=True)

    def copying(self, hidden: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates, and the score of copying them, [..., 1] both: -inf where none was found."""
        return self.scores(hidden, sent(facts_for_copying(matches), hidden.device))

    def scores(self, hidden: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
        """The same with what :func:`facts_for_copying` made of the matches."""
        bias = embedding(self.bias.view(-1, 1), facts["copied_rows"])
        gates = F.linear(hidden, self.gate.to(hidden.dtype))
        gates = gates.to(torch.promote_types(hidden.dtype, torch.float32))
        score = gates.gather(-1, facts["order"][..., None]) + bias
        score = score.masked_fill(facts["uncopied"][..., None], -torch.inf)
        return facts["candidate"][..., None], score


def spread(matches: Tensor) -> Facts:
    """Rows that matches add to the embeddings, -1 where nothing was found."""
    none = matches == 0
    candidate, order, times = (part.masked_fill(none, -1) for part in _parts(matches))
    return {"candidate_rows": candidate, "order_rows": order, "times_rows": times}


def facts_for_copying(matches: Tensor) -> Facts:
    """What the scores of copying are made of, besides hidden states; like `matches`."""
    candidate, order, times = _parts(matches)
    rows = order * (MOST_TIMES + 1) + times
    return {"copied_rows": rows, "candidate": candidate, "order": order, "uncopied": matches == 0}


def _parts(matches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates, numbers of their orders, times in a row."""
    matches = matches.long()
    order, rest = matches // ORDER_UNIT, matches % ORDER_UNIT
    return rest % TIMES_UNIT, order, rest // TIMES_UNIT
