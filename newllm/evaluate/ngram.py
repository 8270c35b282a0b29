"""The n-gram baseline: an interpolated, modified Kneser-Ney n-gram model over token ids.

A trained network only says something once it beats what counting says about the same rows, so every
trained model is printed beside this table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from newllm.data.ngrams import (
    Documents,
    Level,
    estimate,
    preceding,
    predictable_ids,
    rank_ngrams,
)
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


class NgramTable:
    """Interpolated Kneser-Ney n-gram model (Kneser & Ney 1995; Chen & Goodman 1999, modified
    discounts) over integer token ids.

    ``p_k(w | h) = (count(hw) - D) / count(h·) + passed_on(h) * p_{k-1}(w | h minus its oldest)``,
    with ``p_0`` uniform over the ids that can be predicted; a context that was never seen uses
    ``p_{k-1}`` unchanged.  Contexts stop at the document's start: token i of a document is scored
    by order min(order, i + 1).  Every conditional distribution sums to one over the predictable
    ids, and each of these has a probability above zero.
    """

    def __init__(self, levels: list[Level], base: np.ndarray) -> None:
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
        documents = Documents.checked(tokens, offsets, vocab_size)
        predictable = predictable_ids(vocab_size, never_predicted)
        levels = estimate(documents, rank_ngrams(documents, order), predictable)
        return cls(levels, predictable / predictable.sum())

    def nats(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """-ln p(token | up to order-1 earlier tokens of the same document), [N] float64.

        tokens [N] and offsets [D+1] as in :meth:`fit`.  0.0 at each document's first token; inf at
        a never-predicted id anywhere else, which is what a probability of zero costs.
        """
        documents = Documents.checked(tokens, offsets, self.vocab_size)
        ids, starts = documents.ids, documents.starts
        p = self._base[ids]
        ranks = np.zeros(len(ids), dtype=np.int64)
        for k, level in enumerate(self._levels, start=1):
            context = ranks if k == 1 else preceding(ranks, starts)
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
        *next(trained_on.splits["train"].iter_chunks(_COUNTED_TOKENS, scored=True)),
        order=order,
        vocab_size=tokenizer.vocab_size,
        never_predicted=(PAD, tokenizer.bos),
    )
    nats, tokens = 0.0, 0
    for ids, offsets in scored.iter_chunks(_SCORED_AT_ONCE, scored=True):
        nats += float(table.nats(ids, offsets).sum())
        tokens += len(ids) - (len(offsets) - 1)
    content = int(scored.content_bytes.sum())
    bpb = bits_per_byte(nats, content) if tokenizer.kind == "bpe" else None
    baseline = NgramBaseline(order, perplexity(nats / tokens), bpb)
    if split is None:
        write_text(stored, json.dumps(asdict(baseline)))
    return baseline
