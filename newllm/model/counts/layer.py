"""What a model makes of counts: a learnt trust in what each context says.

Shapes: D width of the stream, V vocabulary, K orders of contexts, N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.model.counts import followed
from newllm.model.counts.reference import followers
from newllm.model.counts.table import CONFIDENCES, MOST_CONTEXT, CountTable, StoredTable
from newllm.model.kernels import Facts, embedding, sent


class CountsLayer(nn.Module):
    """The table, and from which hidden states it is trusted.

    From the shortest context to the longest, each one that is known is mixed in ::

        p_0(w)  = softmax(logits)(w)
        p_k(w)  = trust_k q_k(w) + (1 - trust_k (1 - rest_k)) p_{k-1}(w)
        trust_k = sigmoid(gate[k] . hidden + bias[k, rest_k in 16 steps])

    with what `table.py` calls q and rest: sums over w are 1. It is interpolated backing-off (Chen &
    Goodman 1999) with a learnt weight for each order and the network below the shortest context;
    mixtures of a network and an n-gram model are from Neubig & Dyer 2016 (arXiv:1606.00499).
    Recall's copying comes on top: what stands in this text goes before what stood in others.
    """

    packed: Tensor
    """The table as bytes (`StoredTable.pack`), uint8 [n]: a checkpoint has it with the weights."""

    def __init__(self, embed_dim: int, vocab_size: int) -> None:
        """Without any counts yet."""
        super().__init__()
        self.vocab_size = vocab_size
        self.gate = nn.Parameter(torch.zeros(MOST_CONTEXT, embed_dim))
        self.bias = nn.Parameter(torch.zeros(MOST_CONTEXT, CONFIDENCES))
        self.register_buffer("packed", torch.from_numpy(StoredTable.empty().pack()))
        self._table: CountTable | None = None

    @property
    def table(self) -> CountTable:
        """The counts, ready for reading."""
        if self._table is None:
            packed = self.packed.numpy(force=True)
            self._table = CountTable(StoredTable.unpack(packed, self.vocab_size))
        return self._table

    def set_tables(self, tables: Sequence[StoredTable]) -> None:
        """Take in a table; and those behind it, which are for training alone."""
        self.packed = torch.from_numpy(tables[0].pack()).to(self.gate.device)
        self._table = CountTable(*tables)

    def reserve(self, size: int) -> None:
        """Make room for a table of so many bytes, which will be loaded."""
        self.packed = torch.zeros(size, dtype=torch.uint8, device=self.packed.device)
        self._table = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **named: Any
    ) -> None:
        """A table is as large as it is."""
        packed = state_dict.get(f"{prefix}packed")
        if packed is not None and packed.shape != self.packed.shape:
            self.reserve(len(packed))
        self._table = None
        super()._load_from_state_dict(state_dict, prefix, *arguments, **named)

    def mixing(self, hidden: Tensor, contexts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How p_K(target) = counted + left * p_0(target) is mixed: both [N].

        Args:
            hidden: [N, D].
            contexts: that were found, [N, K].
            targets: ids, [N].
        """
        return self.mixed(hidden, sent(self.facts_for_mixing(contexts, targets), hidden.device))

    def facts_for_mixing(self, contexts: Tensor, targets: Tensor) -> Facts:
        """What :meth:`mixing` is made of, besides hidden states; on the CPU."""
        facts = self.facts_for_trust(contexts)
        return facts | {"target_probability": followed(self.table, contexts, targets.cpu())}

    def mixed(self, hidden: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
        """:meth:`mixing` with what :meth:`facts_for_mixing` gave."""
        trust, kept = self._trust(hidden, facts)
        trusted = trust * facts["target_probability"]
        counted, left = torch.zeros_like(trusted[:, 0]), torch.ones_like(trusted[:, 0])
        for order in range(MOST_CONTEXT):
            counted = trusted[:, order] + kept[:, order] * counted
            left = kept[:, order] * left
        return counted, left

    def mix_(self, logits: Tensor, total: Tensor, hidden: Tensor, facts: Facts) -> Tensor:
        """Change logits of p_0 into those of p_K, in place: only those of followers change.

        Args:
            logits: [N, V].
            total: the logarithm of the sum of their exponentials, [N]; not changed.
            hidden: [N, D].
            facts: what :meth:`facts_for_logits`, or :class:`PlacedCounts`, says of them.

        Returns:
            the same logarithm after it, [N].
        """
        trust, kept = self._trust(hidden, facts)
        # p_k(w) = exp(logit(w) - total_k): what is left for the rest goes into the total.
        for order in range(MOST_CONTEXT if "unknown" in facts else 0):
            total = total - kept[:, order].log()
            row, tokens = facts[f"followers_{order}"]
            probability = facts[f"probability_{order}"].to(logits.dtype)
            score = total[row] + trust[row, order].log() + probability.log()
            both = torch.logaddexp(logits[row, tokens], score)
            logits.index_put_((row, tokens), both.to(logits.dtype))
        return total

    def facts_for_logits(self, contexts: Tensor) -> Facts:
        """What :meth:`mix_` is made of, besides hidden states; on the CPU.

        Besides trust, for each order all followers of the contexts [N, K] that were found: their
        rows and tokens, int64 [2, n], and probabilities, [n].
        """
        facts = self.facts_for_trust(contexts)
        for order in range(MOST_CONTEXT if facts else 0):
            rows, places = followers(self.table, contexts[:, order].numpy())
            both = np.stack([rows, self.table.tokens[places]]).astype(np.int64)
            facts[f"followers_{order}"] = torch.from_numpy(both)
            facts[f"probability_{order}"] = torch.from_numpy(self.table.probability[places])
        return facts

    def trust(self, hidden: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """trust (0 where a context is unknown) and 1 - trust (1 - rest), [N, K] both."""
        return self._trust(hidden, sent(self.facts_for_trust(contexts), hidden.device))

    def facts_for_trust(self, contexts: Tensor) -> Facts:
        """What trust is made of, besides hidden states; on the CPU, and nothing without counts."""
        if len(self.table) == 0:
            return {}
        parts = self.table.confidence, self.table.rest
        return _facts_for_trust(contexts, *map(torch.from_numpy, parts))

    def _trust(self, hidden: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
        if "unknown" not in facts:
            shape = *hidden.shape[:-1], MOST_CONTEXT
            none = torch.zeros(shape, device=hidden.device)
            return none, torch.ones_like(none)
        gates = F.linear(hidden, self.gate.to(hidden.dtype))
        gates = gates.to(torch.promote_types(hidden.dtype, torch.float32))
        bias = embedding(self.bias.view(-1, 1), facts["confidence_rows"])[..., 0]
        trust = torch.sigmoid(gates + bias).masked_fill(facts["unknown"], 0.0)
        return trust, 1 - trust * facts["covered"].to(trust.dtype)


class PlacedCounts:
    """A table where the network is: what it is asked there does not depend on what it knows.

    Every context has as many followers as the one that has most: its last one comes again.
    """

    def __init__(self, table: CountTable, device: torch.device) -> None:
        """Copy a table that knows contexts."""

        def placed(part: np.ndarray, kind: type) -> Tensor:
            return torch.from_numpy(part.astype(kind)).to(device)

        self._trust = placed(table.confidence, np.uint8), placed(table.rest, np.float32)
        self._first = placed(table.first[:-1], np.int64)
        self._last = placed(table.first[1:] - 1, np.int64)
        self._tokens = placed(table.tokens, np.int32)
        self._probability = placed(table.probability, np.float32)
        self._places = torch.arange(int(np.diff(table.first).max()), device=device)

    def facts_for_logits(self, contexts: Tensor) -> Facts:
        """As :meth:`CountsLayer.facts_for_logits` for contexts that are there, with followers
        [2, N, F] and probabilities [N, F]; those of unknown contexts count for nothing."""
        facts = _facts_for_trust(contexts, *self._trust)
        number = contexts[:, :, None].long()
        places = torch.minimum(self._first[number] + self._places, self._last[number])
        tokens, probability = self._tokens[places].long(), self._probability[places]
        rows = torch.arange(len(contexts), device=contexts.device)[:, None].expand_as(tokens[:, 0])
        for order in range(MOST_CONTEXT):
            facts[f"followers_{order}"] = torch.stack([rows, tokens[:, order]])
            facts[f"probability_{order}"] = probability[:, order]
        return facts


def _facts_for_trust(contexts: Tensor, confidence: Tensor, rest: Tensor) -> Facts:
    """What trust in contexts [N, K] is made of, -1 for unknown ones, where the table's parts [C]
    are."""
    number = contexts.long()  # of unknown ones the last: they are not trusted
    steps = torch.arange(MOST_CONTEXT, device=contexts.device) * CONFIDENCES
    return {
        "confidence_rows": steps + confidence[number].long(),
        "unknown": contexts < 0,
        "covered": 1 - rest[number],
    }
