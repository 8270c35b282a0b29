"""Writing text token by token, with the state carried and nothing read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.data.tokenizers import BPE, PAD, Tokenizer, Word1000
from newllm.model import LanguageModel, State

_PREFILL_TOKENS = 4096
"""Prompt tokens read at a time: bounds the memory a long prompt needs."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.7
    """0 takes the likeliest token; higher values even out the probabilities."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that together have this probability (arXiv:1904.09751)."""
    seed: int | None = None
    """None: another text every time."""


@dataclass
class Stream:
    """A model in the middle of a text: its state and its opinion of the next token."""

    model: LanguageModel
    state: State | None = None
    logits: Tensor | None = None  # [V]
    tokens_read: int = 0
    last_token: int | None = None

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        """Take in tokens; time and memory do not depend on what was read before."""
        device = next(self.model.parameters()).device
        for start in range(0, len(ids), _PREFILL_TOKENS):
            part = torch.tensor([ids[start : start + _PREFILL_TOKENS]], device=device)
            hidden, self.state = self.model(part, self.state)
            self.logits = self.model.logits(hidden[0, -1]).float()
            self.tokens_read += part.shape[1]
            self.last_token = ids[min(start + _PREFILL_TOKENS, len(ids)) - 1]


def never_written(tokenizer: Tokenizer) -> list[int]:
    """Ids that are no part of an answer: padding, begin, role tokens, and the unknown word."""
    if isinstance(tokenizer, BPE):
        return [PAD, tokenizer.bos, *tokenizer.roles.values()]
    assert isinstance(tokenizer, Word1000)
    return [PAD, tokenizer.bos, tokenizer.unk]


class Sampler:
    """Draws tokens from logits; same seed, same draws."""

    def __init__(self, sampling: Sampling, forbidden: Sequence[int]) -> None:
        self.sampling = sampling
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.long)

    def draw(self, logits: Tensor, also_forbidden: Sequence[int] = ()) -> int:
        """The next token for logits [V]."""
        logits = logits.cpu().clone()
        logits[self._forbidden] = -torch.inf
        if also_forbidden:
            logits[list(also_forbidden)] = -torch.inf
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            # Keep a token while those before it have not reached the share.
            ordered[ordered.cumsum(0) - ordered >= self.sampling.top_p] = 0
            return int(order[torch.multinomial(ordered, 1, generator=self.generator)])
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


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
