"""Choosing the next token: temperature, top-p, top-k, min-p, penalties, and the random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from newllm.inference.sampling import Sampling

PENALTY_WINDOW = 64
"""The repetition penalty is on so many tokens, the last ones of the answer."""

_LARGEST = 1e30
"""A larger temperature or penalty is this one: beyond it fp32 has no products left."""

RngState = dict[str, int]
"""State of numpy's PCG64 generator, from which a sampler takes its random numbers."""


class Sampler:
    """Draws tokens from logits; same seed, same draws."""

    def __init__(
        self, sampling: Sampling, forbidden: Sequence[int], rng_state: RngState | None = None
    ) -> None:
        """Begin at the seed, or go on from the `rng_state` of an earlier sampler."""
        from newllm.inference import nucleus

        self.sampling = sampling
        self._nucleus = nucleus
        self._generator = np.random.PCG64(sampling.seed)
        if rng_state is not None:
            self.rng_state = rng_state
        self._uniform = np.random.Generator(self._generator).random
        self._temperature = np.float32(min(sampling.temperature, _LARGEST))
        self._top_p = np.float32(sampling.top_p)
        self._penalty = np.float32(min(sampling.repetition_penalty, _LARGEST))
        self._plain = not (
            sampling.top_k or sampling.min_p or sampling.frequency_penalty
            or sampling.presence_penalty
        )  # fmt: skip
        self._times: Counter[int] = Counter()
        """How often the answer has each of its tokens; only counted where a penalty asks."""
        self._forbidden = tuple(forbidden)
        self._forbidden_ids: dict[tuple[int, ...], np.ndarray] = {}
        self._recent, self._written = np.zeros(PENALTY_WINDOW, np.int64), 0
        self._entries, self._space = 0, nucleus.work_space(0)

    @property
    def rng_state(self) -> RngState:
        """State of the random numbers; a sampler that is given it goes on the same way."""
        stored: Any = self._generator.state
        return {**stored["state"], **{name: stored[name] for name in ("has_uint32", "uinteger")}}

    @rng_state.setter
    def rng_state(self, state: RngState) -> None:
        self._generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state["state"], "inc": state["inc"]},
            "has_uint32": state["has_uint32"],
            "uinteger": state["uinteger"],
        }

    def begin_answer(self) -> None:
        """Forget which tokens were written last: what an answer repeats is its own words."""
        self._written = 0
        self._times.clear()

    def draw(self, logits: np.ndarray, also_forbidden: tuple[int, ...] = ()) -> int:
        """The next token for logits, fp32 [V].

        Raises:
            FloatingPointError: the logits are not finite, or forbid every token.
        """
        forbidden = self._forbidden_ids.get(also_forbidden)
        if forbidden is None:
            forbidden = np.array([*self._forbidden, *also_forbidden], np.int64)
            self._forbidden_ids[also_forbidden] = forbidden
        if self._entries != len(logits):
            self._entries, self._space = len(logits), self._nucleus.work_space(len(logits))
            self._written = 0  # tokens of another vocabulary mean nothing in this one
        recent = self._recent[: self._written if self._penalty != 1 else 0]
        if not self._plain:
            logits = self._penalized(logits, recent)
            recent = recent[:0]
            forbidden = np.union1d(forbidden, self._ruled_out(logits, forbidden))
        token = self._nucleus.draw(
            logits, forbidden, recent, self._penalty, self._temperature, self._top_p,
            self._uniform(), *self._space,
        )  # fmt: skip
        if token < 0:
            raise FloatingPointError("no token can be drawn: the model's scores are not finite")
        self._recent[self._written % PENALTY_WINDOW] = token
        self._written += 1
        if not self._plain:
            self._times[token] += 1
        return token

    def _penalized(self, logits: np.ndarray, recent: np.ndarray) -> np.ndarray:
        """Scores after all penalties, fp32 [V]."""
        logits, repeated = logits.copy(), np.unique(recent)
        scores = logits[repeated]
        logits[repeated] = np.where(scores > 0, scores / self._penalty, scores * self._penalty)
        if self._times:
            tokens, times = np.array(list(self._times)), np.array(list(self._times.values()))
            per_time, once = self.sampling.frequency_penalty, self.sampling.presence_penalty
            logits[tokens] -= (per_time * times + once).astype(np.float32)
        return logits

    def _ruled_out(self, logits: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
        """Ids that top-k or min-p leave no chance; of equal scores the first ids stay."""
        scores = logits.astype(np.float64)
        scores[forbidden] = -np.inf
        top_k, min_p = self.sampling.top_k, self.sampling.min_p
        out = np.zeros(len(scores), bool)
        if min_p > 0:
            out |= scores < scores.max() + float(self._temperature) * np.log(min_p)
        if 0 < top_k < len(scores):  # else it rules nothing out
            kept = np.zeros(len(scores), bool)
            kept[likeliest(scores, top_k)] = True
            out |= ~kept
        return out.nonzero()[0]


def likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ids of so many of the highest scores [V], the highest first; of equal ones the first ids.

    Sorting them all takes ten times as long as a token of a small model.
    """
    if not 0 < count <= len(scores):
        return np.argsort(-scores, kind="stable")[: max(count, 0)]
    among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return among[np.argsort(-scores[among], kind="stable")[:count]]
