"""Writing text token by token, with the state carried and nothing read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from newllm.model import ContextLM, LanguageModel, State
from newllm.model.context.decode import Lanes, can_step

_PREFILL_TOKENS = 4096
"""Prompt tokens read at a time: bounds the memory a long prompt needs."""

_LANE = 0
"""The only lane of a stream."""

PENALTY_WINDOW = 64
"""The repetition penalty is on so many tokens, the last ones of the answer."""

Draws = dict[str, int]
"""Where a sampler's random numbers are: the state of numpy's PCG64 generator."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.7
    """0 takes the likeliest token; higher values even out the probabilities."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that together have this probability (arXiv:1904.09751)."""
    seed: int | None = None
    """None: another text every time."""
    repetition_penalty: float = 1.0
    """Scores of the tokens written last are divided by it, >= 1; 1 leaves them as they are."""


@dataclass(frozen=True)
class Point:
    """A place in a text, from which one can go on as often as one likes."""

    state: State | None = None
    """Of one lane; None at the start of a text."""
    last_token: int | None = None
    tokens_read: int = 0


START = Point()
"""Nothing is read yet."""


class Stream:
    """A model in the middle of a text: its state and its opinion of the next token.

    Several tokens are read by the module, in chunks; a single one by the fused step, where there
    is one (our architecture, on a CPU). Both go on from the same state.
    """

    def __init__(self, model: LanguageModel, start: Point = START) -> None:
        """Go on from `start`, which is not changed."""
        self.model = model
        self.logits: np.ndarray | None = None
        """Scores of every next token, fp32 [V]; overwritten by the next read."""
        self.tokens_read = start.tokens_read
        self.last_token = start.last_token
        device = next(model.parameters()).device
        parts = (start.state or {}).items()
        self._state: State | None = {name: part.to(device) for name, part in parts} or None
        self._lanes: Lanes | None = None
        self._in_lane = False
        """Whether the state is in the lane of the step, not in `_state`."""

    @property
    def state(self) -> State | None:
        """What was read, as the model keeps it; it stays as it is when the stream reads on."""
        if self._in_lane and self._lanes is not None:
            return self._lanes.state(_LANE)
        return self._state

    @property
    def point(self) -> Point:
        """Where the stream is, to go on from."""
        return Point(self.state, self.last_token, self.tokens_read)

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

    def __init__(
        self, sampling: Sampling, forbidden: Sequence[int], draws: Draws | None = None
    ) -> None:
        """Take random numbers from the seed on, or go on after `draws` of an earlier sampler."""
        from newllm.inference import nucleus

        self.sampling = sampling
        self._nucleus = nucleus
        self._generator = np.random.PCG64(sampling.seed)
        if draws is not None:
            self.draws = draws
        self._uniform = np.random.Generator(self._generator).random
        self._temperature = np.float32(sampling.temperature)
        self._top_p = np.float32(sampling.top_p)
        self._penalty = np.float32(sampling.repetition_penalty)
        self._forbidden = tuple(forbidden)
        self._forbidden_ids: dict[tuple[int, ...], np.ndarray] = {}
        self._recent, self._written = np.zeros(PENALTY_WINDOW, np.int64), 0
        self._entries, self._space = 0, nucleus.work_space(0)

    @property
    def draws(self) -> Draws:
        """Where the random numbers are; a sampler that is given them goes on the same way."""
        stored: Any = self._generator.state
        return {**stored["state"], **{name: stored[name] for name in ("has_uint32", "uinteger")}}

    @draws.setter
    def draws(self, draws: Draws) -> None:
        self._generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": draws["state"], "inc": draws["inc"]},
            "has_uint32": draws["has_uint32"],
            "uinteger": draws["uinteger"],
        }

    def begin_answer(self) -> None:
        """Forget which tokens were written last: what an answer repeats is its own words."""
        self._written = 0

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
        recent = self._recent[: self._written if self._penalty != 1 else 0]
        token = self._nucleus.draw(
            logits, forbidden, recent, self._penalty, self._temperature, self._top_p,
            self._uniform(), *self._space,
        )  # fmt: skip
        if token < 0:
            raise FloatingPointError("no token can be drawn: the model's scores are not finite")
        self._recent[self._written % PENALTY_WINDOW] = token
        self._written += 1
        return token


def write_tokens(
    stream: Stream, sampler: Sampler, end: int, max_new_tokens: int, min_new_tokens: int = 0
) -> Iterator[int]:
    """Yield new tokens until `end` (which is read, not yielded) or the limit."""
    sampler.begin_answer()
    for count in range(max_new_tokens):
        assert stream.logits is not None, "read a prompt first"
        token = sampler.draw(stream.logits, (end,) if count < min_new_tokens else ())
        stream.read([token])
        if token == end:
            return
        yield token
