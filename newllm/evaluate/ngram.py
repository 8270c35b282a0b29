"""The n-gram baseline: an interpolated, modified Kneser-Ney n-gram model over token ids.

A trained network only says something once it beats what counting says about the same rows, so every
trained model is printed beside this table.  Sources:

* Kneser & Ney 1995, "Improved backing-off for M-gram language modeling": lower orders are fitted on
  the number of distinct left neighbours of an n-gram, not on how often it occurs.
* Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling": the
  interpolated form, and three discounts (for counts 1, 2 and 3+) taken from counts of counts.
* Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation": an n-gram that
  opens a document has no left neighbour, so it keeps its plain count at every order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from newllm.data.prepare import Encoded
from newllm.data.shards import EncodedSplit
from newllm.data.tokenizers import PAD
from newllm.evaluate.metrics import bits_per_byte, perplexity
from newllm.files import write_text
from newllm.results.records import NgramBaseline

ORDERS = {"word1000": 3, "bpe": 5}
"""Tokens of context plus one: words carry more than parts of words."""

_COUNTED_TOKENS = 4_000_000
"""Training tokens the table counts at most (the first ones), to bound time and memory (600 MB)."""

_SCORED_AT_ONCE = 500_000
"""Tokens of validation rows in memory at a time."""

# Where counts of counts give no usable estimate (tiny or artificial data): discounts for counts of
# 1, 2 and 3+.  All are above zero, so every seen context still passes mass to the order below.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)

_MAX_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Level:
    """All k-grams of one order k.

    A k-gram is known by its rank in ``keys``; key = (rank of its first k-1 tokens one level down)
    * vocab_size + (its last token).  Ranks are dense and keys exact, so two n-grams never collide.
    """

    keys: np.ndarray  # [G] int64, sorted
    discounted: np.ndarray  # [G] float64: (count - discount) / (sum of the context's counts)
    passed_on: np.ndarray  # [C] float64: per context, the discounted mass given to order k-1


def _checked(
    tokens: np.ndarray, offsets: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validate ids [N] and offsets [D+1]; return both as int64."""
    if tokens.ndim != 1 or offsets.ndim != 1 or len(offsets) == 0:
        raise ValueError("tokens must be [N] and offsets [D+1]")
    # int64 first: narrow ids would wrap around in the keys, unsigned offsets in their differences.
    ids, edges = np.asarray(tokens, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    if edges[0] != 0 or edges[-1] != len(ids) or bool(np.any(np.diff(edges) < 0)):
        raise ValueError("offsets must rise from 0 to the number of tokens")
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"token ids must lie in [0, {vocab_size})")
    return ids, edges


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


def _preceding(ranks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For every position, the rank one position earlier in the same document, else -1.  [N]"""
    before = np.empty_like(ranks)
    before[1:] = ranks[:-1]
    before[starts] = -1
    return before


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


def _estimate(keys: np.ndarray, counts: np.ndarray, contexts: int, vocab_size: int) -> _Level:
    """Turn the (adjusted) counts [G] of one order into what follows each context."""
    context = keys // vocab_size
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=contexts)
    held_back = np.bincount(context, weights=discount, minlength=contexts)
    # A context never followed by a predictable token says nothing: all mass comes from below.
    passed_on = np.divide(held_back, total, out=np.ones(contexts), where=total > 0)
    del held_back
    discounted = np.subtract(counts, discount, out=discount)  # in place: this is where memory peaks
    discounted /= np.maximum(total, 1, out=total)[context]
    return _Level(keys, discounted, passed_on)


class NgramTable:
    """Interpolated Kneser-Ney n-gram model (Kneser & Ney 1995; Chen & Goodman 1999, modified
    discounts) over integer token ids.

    ``p_k(w | h) = (count(hw) - D) / count(h·) + passed_on(h) * p_{k-1}(w | h minus its oldest)``,
    with ``p_0`` uniform over the ids that can be predicted; a context that was never seen uses
    ``p_{k-1}`` unchanged.  Contexts stop at the document's start: token i of a document is scored
    by order min(order, i + 1).  Every conditional distribution sums to one over the predictable
    ids, and each of these has a probability above zero.
    """

    def __init__(self, levels: list[_Level], base: np.ndarray) -> None:
        self._levels = levels  # orders 1..order
        self._base = base  # [V] float64: uniform over predictable ids, 0 elsewhere

    @property
    def order(self) -> int:
        return len(self._levels)

    @property
    def vocab_size(self) -> int:
        return len(self._base)

    @classmethod
    def fit(
        cls,
        tokens: np.ndarray,
        offsets: np.ndarray,
        order: int,
        vocab_size: int,
        never_predicted: Sequence[int] = (),
    ) -> NgramTable:
        """Count all documents and estimate every order.

        tokens: all documents' ids one after the other [N] (any integer dtype, may be a memmap).
        offsets: [D+1] int64; document d is ``tokens[offsets[d]:offsets[d+1]]`` and starts with its
            BOS id, which is context and never a target.
        never_predicted: ids that are never a target (PAD, BOS) and get no probability mass; where
            one stands inside a document it is context only.
        """
        if order < 1:
            raise ValueError("order must be at least 1")
        ids, edges = _checked(tokens, offsets, vocab_size)
        predictable = np.ones(vocab_size, dtype=bool)
        for token in never_predicted:
            if not 0 <= token < vocab_size:
                raise ValueError(f"never_predicted ids must lie in [0, {vocab_size})")
            predictable[token] = False
        if not predictable.any():
            raise ValueError("no id is left to predict")

        ids = ids.astype(np.int32)
        lengths = np.diff(edges)
        starts = edges[:-1][lengths > 0]
        not_first = np.ones(len(ids), dtype=bool)  # a document's first token is never a target
        not_first[starts] = False
        all_keys: list[np.ndarray] = []  # per order, [G_k]
        all_counts: list[np.ndarray] = []  # per order, [G_k]; complete one order later
        # Rank of the k-gram that ends at each position, -1 where none that long fits the document.
        # The empty n-gram (k = 0) has rank 0 everywhere.
        ranks = np.zeros(len(ids), dtype=np.int32)
        contexts = 1
        for k in range(1, order + 1):
            if contexts > _MAX_KEY // vocab_size:
                raise OverflowError("n-gram keys do not fit 64 bits")
            context = ranks if k == 1 else _preceding(ranks, starts)
            at = np.nonzero(context >= 0)[0].astype(np.int32)
            keys, found = _ranked(context[at].astype(np.int64) * vocab_size + ids[at])
            if k > 1:
                # Each distinct k-gram is one left neighbour of its own last k-1 tokens.
                suffix = np.empty(len(keys), dtype=np.int32)
                suffix[found] = ranks[at]
                all_counts[-1] += np.bincount(suffix, minlength=contexts).astype(np.int32)
            ranks = np.full(len(ids), -1, dtype=np.int32)
            ranks[at] = found
            del at, found, context
            if k == order:
                counted = ranks[not_first & (ranks >= 0)]
            elif k > 1:
                # No left neighbour can exist at a document's start: occurrences count there.
                counted = ranks[edges[:-1][lengths >= k] + k - 1]
            else:
                counted = ranks[:0]
            contexts = len(keys)
            all_keys.append(keys)
            all_counts.append(np.bincount(counted, minlength=contexts).astype(np.int32))

        levels: list[_Level] = []
        contexts = 1
        while all_keys:  # each order's counts go as its probabilities come
            keys, counts = all_keys.pop(0), all_counts.pop(0)
            counts[~predictable[keys % vocab_size]] = 0
            levels.append(_estimate(keys, counts, contexts, vocab_size))
            contexts = len(keys)
        return cls(levels, predictable / predictable.sum())

    def nats(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """-ln p(token | up to order-1 earlier tokens of the same document), [N] float64.

        tokens [N] and offsets [D+1] as in :meth:`fit`.  0.0 at each document's first token; inf at
        a never-predicted id anywhere else, which is what a probability of zero costs.
        """
        ids, edges = _checked(tokens, offsets, self.vocab_size)
        starts = edges[:-1][np.diff(edges) > 0]
        p = self._base[ids]
        ranks = np.zeros(len(ids), dtype=np.int64)
        for k, level in enumerate(self._levels, start=1):
            context = ranks if k == 1 else _preceding(ranks, starts)
            # Only positions whose k-1 preceding tokens were seen in fitting change at this order.
            (at,) = np.nonzero(context >= 0)
            ranks = np.full(len(ids), -1, dtype=np.int64)
            if len(at) == 0 or len(level.keys) == 0:
                break  # an unseen context has no seen extension either
            wanted = context[at] * self.vocab_size + ids[at]
            slot = np.minimum(np.searchsorted(level.keys, wanted), len(level.keys) - 1)
            seen = level.keys[slot] == wanted
            p[at] = (
                np.where(seen, level.discounted[slot], 0.0) + level.passed_on[context[at]] * p[at]
            )
            ranks[at] = np.where(seen, slot, -1)
        with np.errstate(divide="ignore"):
            nats = -np.log(p)
        nats[starts] = 0.0
        return nats


def ngram_baseline(trained_on: Encoded, split: EncodedSplit | None = None) -> NgramBaseline:
    """Count the training rows, score the validation rows (or `split`, encoded likewise).

    The result for the data set's own validation rows is kept beside the shards (`ngram.json`).
    """
    stored = trained_on.folder / "ngram.json"
    if split is None and stored.exists():
        return NgramBaseline(**json.loads(stored.read_text(encoding="utf-8")))
    scored = split or trained_on.splits["validation"]
    tokenizer = trained_on.tokenizer
    order = ORDERS[tokenizer.kind]
    table = NgramTable.fit(
        *next(trained_on.splits["train"].iter_chunks(_COUNTED_TOKENS)),
        order=order,
        vocab_size=tokenizer.vocab_size,
        never_predicted=(PAD, tokenizer.bos),
    )
    parts = scored.iter_chunks(_SCORED_AT_ONCE)
    nats = sum(float(table.nats(*part).sum()) for part in parts)
    tokens = int(scored.lengths.sum()) - len(scored)
    content = int(scored.content_bytes.sum())
    bpb = bits_per_byte(nats, content) if tokenizer.kind == "bpe" else None
    baseline = NgramBaseline(order, perplexity(nats / tokens), bpb)
    if split is None:
        write_text(stored, json.dumps(asdict(baseline)))
    return baseline
