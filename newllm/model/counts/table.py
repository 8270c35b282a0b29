"""A table of counts: what followed the last tokens in the training rows, pruned and rounded.

What can be counted need not be learnt. For each context of 1, 2, 3 or 4 tokens that is kept, a
table has some of the tokens that followed it (its followers) with their probabilities q(w | h).
What they leave, rest(h) = 1 - sum of q(w | h), is for what shorter contexts say, and below the
shortest one for the network (`layer.py`). So every distribution sums to one, however much was
pruned: nothing has to be normalised.

Contexts are found by the hash of recall (`model/recall/reference.py`). Each order has S sets; a
context is in set h mod S, with the check (h div S) mod 2^16. An unknown context is taken for
another one once in some thousands; the distribution sums to one all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

MOST_CONTEXT = 4
"""Tokens of the longest context."""

MOST_FOLLOWERS = 255
"""Followers of a context at most."""

CHECK_VALUES = 2**16

REST_STEP, SMALLEST_ODDS = 1 / 16, -8.0
"""Steps of ln(rest / (1 - rest)), and where they begin."""

WEIGHT_STEP = 1 / 32
"""Steps of ln(first follower / follower)."""

CONFIDENCES = 16
"""Steps in which the model is shown how much a context leaves."""

CONTEXT_BYTES, FOLLOWER_BYTES = 4, 3
"""Size of a context and of a follower in a file; a set is one more byte."""


@dataclass(frozen=True)
class StoredTable:
    """A table as files hold it: K orders with S sets each, C contexts, E followers.

    Contexts come in the order of their sets, and followers in the order of their contexts, the most
    frequent one of each first.
    """

    checks: np.ndarray
    """uint16 [C]."""
    tokens: np.ndarray
    """Followers, uint16 [E]."""
    sets: np.ndarray
    """Contexts in each set, uint8 [K * S]."""
    followers: np.ndarray
    """How many followers a context has, uint8 [C]."""
    rests: np.ndarray
    """ln(rest / (1 - rest)) in steps of `REST_STEP` above `SMALLEST_ODDS`, uint8 [C]."""
    weights: np.ndarray
    """ln(first follower / follower) in steps of `WEIGHT_STEP`, uint8 [E]."""

    def pack(self) -> np.ndarray:
        """All parts as bytes, uint8 [n], behind the numbers S, C and E."""
        sizes = len(self.sets) // MOST_CONTEXT, len(self.checks), len(self.tokens)
        parts = [np.array(sizes, "<u4"), *(getattr(self, part.name) for part in fields(self))]
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])

    @classmethod
    def empty(cls) -> StoredTable:
        """A table that knows no context."""
        sizes, kinds = (0, 0, MOST_CONTEXT, 0, 0, 0), ("<u2", "<u2", "u1", "u1", "u1", "u1")
        return cls(*(np.zeros(size, kind) for size, kind in zip(sizes, kinds, strict=True)))

    @classmethod
    def unpack(cls, packed: np.ndarray, vocab_size: int) -> StoredTable:
        """What :meth:`pack` made; no bytes, or room for some, are a table without contexts.

        Raises:
            ValueError: these bytes are no table for a vocabulary of that size.
        """
        if not packed[:12].any():
            return cls.empty()
        if len(packed) < 12:
            raise ValueError("a table of counts without its sizes")
        sets, contexts, followers = (int(size) for size in packed[:12].view("<u4"))
        counts = (contexts, followers, MOST_CONTEXT * sets, contexts, contexts, followers)
        sizes = [count * (2 if place < 2 else 1) for place, count in enumerate(counts)]
        if sets == 0 or sum(sizes) + 12 != len(packed):
            raise ValueError("a table of counts of another size than it says")
        parts = np.split(packed[12:], np.cumsum(sizes)[:-1])
        table = cls(*(part.view("<u2") for part in parts[:2]), *parts[2:])
        fits = int(table.sets.sum()) == contexts and int(table.followers.sum()) == followers
        if not fits or 0 in table.followers or bool((table.tokens >= vocab_size).any()):
            raise ValueError("a table of counts whose parts do not fit each other")
        return table


class CountTable:
    """One or several tables ready for reading; their contexts are numbered through.

    Attributes:
        index: where the sets of each table begin in `starts`, and how many an order has, int64
            [tables, 2].
        starts: first context of each set, int32 [sum of K * S, + 1].
        checks: uint16 [C].
        first: first follower of each context, int32 [C + 1].
        rest: fp32 [C].
        confidence: the rest in 16 steps, uint8 [C].
        tokens, probability: of the followers, uint16 and fp32 [E].
    """

    def __init__(self, *stored: StoredTable) -> None:
        sizes = np.array([len(part.sets) for part in stored])
        self.index = np.stack([np.cumsum(sizes) - sizes, sizes // MOST_CONTEXT], axis=1)
        joined = StoredTable(
            *(
                np.concatenate([getattr(part, item.name) for part in stored])
                for item in fields(StoredTable)
            )
        )
        self.starts, self.first = _starts(joined.sets), _starts(joined.followers)
        self.checks, self.tokens = joined.checks, joined.tokens
        odds = joined.rests * np.float32(REST_STEP) + np.float32(SMALLEST_ODDS)
        self.rest = 1 / (1 + np.exp(-odds))
        self.confidence = joined.rests // (256 // CONFIDENCES)
        weight = np.exp(joined.weights * np.float32(-WEIGHT_STEP))
        sums = np.add.reduceat(weight, self.first[:-1]) if len(self.rest) else weight[:0]
        self.probability = weight * np.repeat((1 - self.rest) / sums, joined.followers)

    def __len__(self) -> int:
        """Number of contexts."""
        return len(self.rest)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)
