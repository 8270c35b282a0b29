"""Writing text token by token, with the state carried and nothing read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from newllm.model import ContextLM, LanguageModel, State
from newllm.model.step import Lanes, can_step

_PREFILL_TOKENS = 4096
"""Prompt tokens read at a time: bounds the memory a long prompt needs."""

_LANE = 0
"""The only lane of a stream."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.7
    """0 takes the likeliest token; higher values even out the probabilities."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that together have this probability (arXiv:1904.09751)."""
    seed: int | None = None
    """None: another text every time."""


class Stream:
    """A model in the middle of a text: its state and its opinion of the next token.

    Several tokens are read by the module, in chunks; a single one by the fused step, where there
    is one (our architecture, on a CPU). Both go on from the same state.
    """

    def __init__(self, model: LanguageModel, state: State | None = None) -> None:
        """`state` is what was read before, and is not changed; None for the start of a text."""
        self.model = model
        self.logits: np.ndarray | None = None
        """Scores of every next token, fp32 [V]; overwritten by the next read."""
        self.tokens_read = 0
        self.last_token: int | None = None
        self._state = state
        self._lanes: Lanes | None = None
        self._in_lane = False
        """Whether the state is in the lane of the step, not in `_state`."""

    @property
    def state(self) -> State | None:
        """What was read, as the model keeps it; it stays as it is when the stream reads on."""
        if self._in_lane and self._lanes is not None:
            return self._lanes.state(_LANE)
        return self._state

    def read(self, ids: Sequence[int]) -> None:
        """Take in tokens; time and memory do not depend on what was read before."""
        if len(ids) == 1 and (self._in_lane or can_step(self.model)):
            self._step(ids[0])
        elif ids:
            self._read_chunks(ids)
        self.tokens_read += len(ids)
        self.last_token = ids[-1] if ids else self.last_token

    def _step(self, token: int) -> None:
        if self._lanes is None:
            assert isinstance(self.model, ContextLM)
            self._lanes = Lanes(self.model)
            self._lanes.add()
        if not self._in_lane:
            self._lanes.set_state(_LANE, self._state)
            self._state, self._in_lane = None, True
        self.logits = self._lanes.step((_LANE,), (token,))[0]

    @torch.inference_mode()
    def _read_chunks(self, ids: Sequence[int]) -> None:
        device = next(self.model.parameters()).device
        state = self.state
        for start in range(0, len(ids), _PREFILL_TOKENS):
            part = torch.tensor([ids[start : start + _PREFILL_TOKENS]], device=device)
            hidden, state = self.model(part, state)
            if start + _PREFILL_TOKENS >= len(ids):
                self.logits = self.model.logits(hidden[0, -1]).float().numpy(force=True)
        self._state, self._in_lane = state, False


class Sampler:
    """Draws tokens from logits; same seed, same draws."""

    def __init__(self, sampling: Sampling, forbidden: Sequence[int]) -> None:
        from newllm.chat import nucleus  # numba: half a second for those who write text

        self.sampling = sampling
        self._nucleus = nucleus
        self._uniform = np.random.default_rng(sampling.seed).random
        self._temperature = np.float32(sampling.temperature)
        self._top_p = np.float32(sampling.top_p)
        self._forbidden = tuple(forbidden)
        self._forbidden_ids: dict[tuple[int, ...], np.ndarray] = {}
        self._entries, self._space = 0, nucleus.work_space(0)

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
        token = self._nucleus.draw(
            logits, forbidden, self._temperature, self._top_p, self._uniform(), *self._space
        )
        if token < 0:
            raise FloatingPointError("no token can be drawn: the model's scores are not finite")
        return token


def write_tokens(
    stream: Stream, sampler: Sampler, end: int, max_new_tokens: int, min_new_tokens: int = 0
) -> Iterator[int]:
    """Yield new tokens until `end` (which is read, not yielded) or the limit."""
    for count in range(max_new_tokens):
        assert stream.logits is not None, "read a prompt first"
        token = sampler.draw(stream.logits, (end,) if count < min_new_tokens else ())
        stream.read([token])
        if token == end:
            return
        yield token
