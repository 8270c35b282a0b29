"""n-grams of encoded documents: counted, and smoothed by modified Kneser-Ney.

Two use them: the baseline beside which every model is judged (`evaluate/ngram.py`), and the table
of counts that a model has (`train/counting.py`).  Sources:

* Kneser & Ney 1995, "Improved backing-off for M-gram language modeling": lower orders are fitted on
  the number of distinct left neighbours of an n-gram, not on how often it occurs.
* Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling": the
  interpolated form, and three discounts (for counts 1, 2 and 3+) taken from counts of counts.
* Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation": an n-gram that
  opens a document has no left neighbour, so it keeps its plain count at every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Where counts of counts give no usable estimate (tiny or artificial data): discounts for counts of
# 1, 2 and 3+.  All are above zero, so every seen context still passes mass to the order below.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)

_MAX_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Order:
    """All k-grams of one order k that stand in some documents of N tokens.

    A k-gram is known by its rank in ``keys``; key = (rank of its first k-1 tokens one order down)
    * vocab_size + (its last token).  Ranks are dense and keys exact, so two n-grams never collide.
    """

    keys: np.ndarray  # [G] int64, sorted
    suffix: np.ndarray  # [G] int32: rank of its last k-1 tokens one order down
    ranks: np.ndarray  # [N] int32: the k-gram that ends at each position, -1 at a document's start


@dataclass(frozen=True)
class Level:
    """What follows the contexts of one order; C contexts are the k-1-grams."""

    keys: np.ndarray  # [G] int64, sorted: as in `Order`
    discounted: np.ndarray  # [G] float64: (count - discount) / (sum of the context's counts)
    passed_on: np.ndarray  # [C] float64: per context, the discounted mass given to order k-1
    total: np.ndarray  # [C] float64: the sum of the context's counts, at least 1


@dataclass(frozen=True)
class Documents:
    """Ids of documents, checked.

    Args:
        tokens: all documents' ids one after the other [N] (any integer dtype, may be a memmap).
        offsets: [D+1] int64; document d is ``tokens[offsets[d]:offsets[d+1]]`` and starts with its
            BOS id, which is context and never a target.
    """

    ids: np.ndarray  # [N] int64
    edges: np.ndarray  # [D+1] int64
    vocab_size: int

    @classmethod
    def checked(cls, tokens: np.ndarray, offsets: np.ndarray, vocab_size: int) -> Documents:
        if tokens.ndim != 1 or offsets.ndim != 1 or len(offsets) == 0:
            raise ValueError("tokens must be [N] and offsets [D+1]")
        # int64 first: narrow ids would wrap around in keys, unsigned offsets in their differences.
        ids, edges = np.asarray(tokens, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
        if edges[0] != 0 or edges[-1] != len(ids) or bool(np.any(np.diff(edges) < 0)):
            raise ValueError("offsets must rise from 0 to the number of tokens")
        if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
            raise ValueError(f"token ids must lie in [0, {vocab_size})")
        return cls(ids, edges, vocab_size)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, [D]."""
        return np.diff(self.edges)

    @property
    def starts(self) -> np.ndarray:
        """Position of each document's first token; empty ones have none."""
        return self.edges[:-1][self.lengths > 0]


def predictable_ids(vocab_size: int, never_predicted: Sequence[int]) -> np.ndarray:
    """Which ids may be a target; bool [V]."""
    predictable = np.ones(vocab_size, dtype=bool)
    for token in never_predicted:
        if not 0 <= token < vocab_size:
            raise ValueError(f"never_predicted ids must lie in [0, {vocab_size})")
        predictable[token] = False
    if not predictable.any():
        raise ValueError("no id is left to predict")
    return predictable


def rank_ngrams(documents: Documents, order: int) -> list[Order]:
    """All n-grams of orders 1..order."""
    if order < 1:
        raise ValueError("order must be at least 1")
    ids, starts = documents.ids.astype(np.int32), documents.starts
    orders: list[Order] = []
    # The empty n-gram (k = 0) has rank 0 everywhere.
    ranks, contexts = np.zeros(len(ids), dtype=np.int32), 1
    for k in range(1, order + 1):
        if contexts > _MAX_KEY // documents.vocab_size:
            raise OverflowError("n-gram keys do not fit 64 bits")
        context = ranks if k == 1 else preceding(ranks, starts)
        at = np.nonzero(context >= 0)[0].astype(np.int32)
        keys, found = _ranked(context[at].astype(np.int64) * documents.vocab_size + ids[at])
        suffix = np.zeros(len(keys), dtype=np.int32)
        suffix[found] = ranks[at]
        ranks = np.full(len(ids), -1, dtype=np.int32)
        ranks[at] = found
        orders.append(Order(keys, suffix, ranks))
        contexts = len(keys)
    return orders


def estimate(
    documents: Documents,
    orders: Sequence[Order],
    predictable: np.ndarray,
    counted: np.ndarray | None = None,
) -> list[Level]:
    """What follows each context, of every order.

    Args:
        documents: whose n-grams were ranked.
        orders: they.
        predictable: ids that may be a target, bool [V]; where another one stands inside a document
            it is context only, and it gets no probability.
        counted: which documents count, bool [D]; None for all.
    """
    included = np.ones(len(documents.edges) - 1, bool) if counted is None else counted
    positions = np.repeat(included, documents.lengths)
    levels: list[Level] = []
    contexts = 1
    for k, order in enumerate(orders, start=1):
        counts = np.zeros(len(order.keys), np.int32)
        if k == len(orders):
            here = positions & (order.ranks >= 0)
            here[documents.starts] = False  # a document's first token is never a target
            counts += np.bincount(order.ranks[here], minlength=len(counts)).astype(np.int32)
        else:
            above = orders[k]
            # Each distinct k+1-gram is one left neighbour of its own last k tokens.
            neighbours = above.suffix
            if counted is not None:
                there = np.zeros(len(above.keys), bool)
                there[above.ranks[positions & (above.ranks >= 0)]] = True
                neighbours = neighbours[there]
            counts += np.bincount(neighbours, minlength=len(counts)).astype(np.int32)
            if k > 1:
                # No left neighbour can exist at a document's start: occurrences count there.
                opening = documents.edges[:-1][included & (documents.lengths >= k)] + k - 1
                counts += np.bincount(order.ranks[opening], minlength=len(counts)).astype(np.int32)
        counts[~predictable[order.keys % documents.vocab_size]] = 0
        levels.append(_estimate(order.keys, counts, contexts, documents.vocab_size))
        contexts = len(order.keys)
    return levels


def preceding(ranks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For every position, the rank one position earlier in the same document, else -1.  [N]"""
    before = np.empty_like(ranks)
    before[1:] = ranks[:-1]
    before[starts] = -1
    return before


def _ranked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, sorted, and the rank of each of the given among them (int32).

    As `np.unique`, in less memory.
    """
    order = np.argsort(values)
    ordered = values[order]
    del values
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    keys = ordered[new]
    del ordered
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order] = np.cumsum(new, dtype=np.int32) - 1
    return keys, ranks


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discount for counts 0, 1, 2 and 3+ (Chen & Goodman 1999, eq. 26) from counts [G].  [4]"""
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        # A discount at or below zero could leave a context no mass for unseen tokens, and one above
        # the count would make a discounted count negative.
        if all(0 < d <= count for count, d in enumerate(found, start=1)):
            return np.array((0.0, *found))
    return np.array((0.0, *FALLBACK_DISCOUNTS))


def _estimate(keys: np.ndarray, counts: np.ndarray, contexts: int, vocab_size: int) -> Level:
    """Turn the (adjusted) counts [G] of one order into what follows each context."""
    context = keys // vocab_size
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=contexts)
    held_back = np.bincount(context, weights=discount, minlength=contexts)
    # A context never followed by a predictable token says nothing: all mass comes from below.
    passed_on = np.divide(held_back, total, out=np.ones(contexts), where=total > 0)
    del held_back
    discounted = np.subtract(counts, discount, out=discount)  # in place: this is where memory peaks
    np.maximum(total, 1, out=total)
    discounted /= total[context]
    return Level(keys, discounted, passed_on, total)
