"""Rehearsal: documents of earlier data sets among those of the present one.

A share of 5% (related texts) to 25% (very different ones) together with a new warm-up keeps what a
model has learnt almost as well as training on everything anew (Ibrahim et al. 2024, "Simple and
Scalable Strategies to Continually Pre-train Large Language Models", arXiv:2403.08763).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from newllm.data.shards import Documents


class Mixture:
    """All documents of one split, and a selection of others; documents as a split has them.

    Args:
        main: read completely.
        rehearsed: splits to draw from, each an equal part of the tokens.
        share: of all tokens that is rehearsed, 0..0.9.
        seed: decides, with the rest, which documents are drawn.
    """

    def __init__(
        self, main: Documents, rehearsed: Sequence[Documents], share: float, seed: tuple[int, ...]
    ) -> None:
        tokens = float(main.lengths.sum()) * share / (1 - share) / max(1, len(rehearsed))
        chosen = [np.arange(len(main.lengths), dtype=np.int32)]
        for number, split in enumerate(rehearsed):
            chosen.append(_drawn(split.lengths, tokens, np.random.default_rng((*seed, number))))
        self._splits = [main, *rehearsed]
        self._split = np.repeat(
            np.arange(len(chosen), dtype=np.int16), [len(part) for part in chosen]
        )
        self._document = np.concatenate(chosen)
        lengths = [s.lengths[part] for s, part in zip(self._splits, chosen, strict=True)]
        self.lengths: np.ndarray = np.concatenate(lengths)
        """Tokens of each document, [D] int64."""

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Ids of tokens start..stop of a document, uint16."""
        split = self._splits[self._split[document]]
        return split.tokens(int(self._document[document]), start, stop)

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray:
        """Which of those tokens an assistant has to produce, bool."""
        split = self._splits[self._split[document]]
        return split.assistant(int(self._document[document]), start, stop)


def _drawn(lengths: np.ndarray, tokens: float, rng: np.random.Generator) -> np.ndarray:
    """Documents with so many tokens in all, none twice before all were drawn once."""
    rounds = []
    while tokens > 0 and lengths.sum() > 0:
        order = rng.permutation(len(lengths)).astype(np.int32)
        reached = np.cumsum(lengths[order])
        rounds.append(order[: np.searchsorted(reached, tokens) + 1])
        tokens -= float(lengths[rounds[-1]].sum())
    return np.concatenate(rounds) if rounds else np.zeros(0, np.int32)
