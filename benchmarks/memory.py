"""Speed and memory of a text against its length: both should stay where they are.

    newllm bench memory --tokens 1000000
    newllm bench memory --checkpoint checkpoints/best_new_llm_dolly_layers1_bpe.pt

One endless text is written and not kept. Before each power of ten its last stretch (at most 5,000
tokens) is timed side by side with a text begun at that moment, so
that the ratio of their speeds is free of the machine's noise.
"""

from __future__ import annotations

from typing import Any

import click

from benchmarks.measure import Report, Row, progress, report_options, rounds
from benchmarks.models import find_model, model_options
from newllm.chat.dialogue import state_bytes
from newllm.data.tokenizers import BPE
from newllm.inference.decoder import Stream, make_decoder, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel
from newllm.train.memory import resident_bytes

ROUNDS = 25
LONGEST_STRETCH = 200
"""Tokens of one timing; fewer where the text is still short."""


@click.command()
@model_options
@click.option("--tokens", default=100_000, show_default=True, type=click.IntRange(min=100),
              help="Length of the text.")  # fmt: skip
@report_options
def command(checkpoint: str | None, tokens: int, **shape: Any) -> Report:
    subject = find_model(checkpoint, **shape)
    return Report({"A text as it grows": growing_text(subject.model, tokens)}, subject.facts)


def growing_text(model: LanguageModel, tokens: int) -> list[Row]:
    """Speed and memory at 100, 1,000, 10,000 .. tokens, and at the end."""
    marks = [10**power for power in range(2, len(str(tokens))) if 10**power <= tokens // 2]
    text, rows, first_mb = _Text(model), [], None
    for mark in (*marks, tokens):
        runs = ROUNDS + 1  # the first does not count
        stretch = min(LONGEST_STRETCH, (mark - text.length) // runs)
        text.write(mark - text.length - stretch * runs)
        just_begun = _Text(model)
        old, new = rounds(
            {
                "old": lambda stretch=stretch: text.write(stretch),
                "just begun": lambda stretch=stretch, new=just_begun: new.write(stretch),
            },
            ROUNDS,
            "just begun",
            work=stretch,
        )
        resident_mb = resident_bytes() / 1e6
        first_mb = first_mb or resident_mb
        rows.append(
            {
                "tokens": text.length,
                "tokens_per_second": old.per_second,
                "spread": old.spread,
                "of_a_text_just_begun": new.per_second,
                "ratio": old.ratio,
                "state_bytes": text.state_bytes,
                "resident_mb": resident_mb,
                "resident_ratio": resident_mb / first_mb,
            }
        )
        progress(f"{text.length:,} tokens: {old.per_second:,.0f} a second")
    return rows


class _Text:
    """A text that a model writes, of which nothing is kept but the model's state."""

    def __init__(self, model: LanguageModel) -> None:
        self._stream = Stream(make_decoder(model))
        self._stream.read([BPE.bos])
        self._sampler = Sampler(Sampling(seed=0), ())

    @property
    def length(self) -> int:
        return self._stream.tokens_read

    @property
    def state_bytes(self) -> int:
        return state_bytes(self._stream.state)

    def write(self, count: int) -> None:
        """Go on by so many tokens, sampled; the text never ends."""
        for _ in write_tokens(self._stream, self._sampler, BPE.end, count, count):
            pass
