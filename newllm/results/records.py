"""What training and evaluation leave: the numbers of an epoch, its answers, the n-gram baseline.

Records are stored as they are (a line of `NAME.metrics.jsonl`, an entry of `climb.json`, part of a
checkpoint), so they are typed dictionaries: the keys here are those of the files. Nothing here
needs torch, so that what a run left can be shown without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from typing_extensions import NotRequired


class Metrics(TypedDict):
    """The numbers of one evaluation, None where they would mean nothing."""

    rows: int
    tokens: int
    nats: float
    loss: float
    """Nats per scored token."""
    ppl: float
    accuracy: float
    """Fraction of scored tokens that the model's first choice hits, 0..1."""
    unk_share: float | None
    """Fraction of scored tokens that are the unknown word, 0..1 (word1000)."""
    bpb: float | None
    """Bits per UTF-8 byte of content; all nats count, whole documents, state carried (BPE)."""
    bpb_assistant: float | None
    """The same for what the assistant says alone."""
    loss_without_counts: NotRequired[float]
    """Nats per scored token of a model with counts, by its network (and recall) alone."""
    prefers_chosen: NotRequired[float]
    """Of a training on preferences: share of validation pairs whose chosen answer is likelier."""
    longer_chosen: NotRequired[float]
    """Share of these pairs whose chosen answer is the longer one."""


def size_text(parameters: int, counts_bytes: int, before: bool = False) -> str:
    """`1,398,016 parameters`, and a model's counts by themselves: they are not learnt.

    Before a training only the most that they may take is known.
    """
    most = "up to " if before else ""
    counts = f" and {most}{counts_bytes / 1e6:.1f} MB of counts" if counts_bytes else ""
    return f"{parameters:,} parameters{counts}"


def reached(bpb: float | None, ppl: float) -> str:
    """`1.4500 bits per byte`, or the perplexity where these would mean nothing."""
    return f"PPL {ppl:.2f}" if bpb is None else f"{bpb:.4f} bits per byte"


def without_counts(record: Metrics) -> str | None:
    """What the network alone reached; None where that was not measured."""
    loss = record.get("loss_without_counts")
    if loss is None:
        return None
    bpb = record["bpb"]
    return reached(None if bpb is None else bpb * loss / record["loss"], math.exp(loss))


Measure = Literal["bpb", "ppl"]


def score(record: Metrics, measure: Measure) -> float:
    """Bits per byte or perplexity of a record, lower is better; infinite where it has none."""
    value = record[measure]
    return math.inf if value is None else value


class EpochRecord(Metrics):
    """One epoch: a line of `NAME.metrics.jsonl`, with the metrics of the validation rows."""

    epoch: int
    """From 1."""
    epochs: int
    """Of the whole run."""
    steps: int
    """Over all epochs so far."""
    trained_tokens: int
    """Over all epochs so far."""
    train_loss: float
    """Nats per trained token of this epoch."""
    best: bool
    """Whether its validation loss is the lowest so far."""
    skipped_steps: int
    """Steps left out so far because a number was not finite."""
    seconds: float
    """Spent in this epoch's training steps."""
    total_seconds: float
    """Spent in training steps so far."""


class PromptAnswer(TypedDict):
    """A fixed prompt and what the model answers to it."""

    prompt: str
    answer: str


class Answers(TypedDict):
    """The answers to the fixed prompts."""

    answers: list[PromptAnswer]
    repetition_rate: float
    """Fraction of three-word runs that occurred earlier in the same answer, 0..1."""


class AnswersRecord(Answers):
    """One epoch's: a line of `NAME.answers.jsonl`."""

    epoch: int


@dataclass(frozen=True)
class NgramBaseline:
    """What an n-gram table of the training rows scores on the validation rows (`ngram.json`)."""

    order: int
    ppl: float
    bpb: float | None
    """Bits per byte; None where the tokens lose text (word1000)."""

    def beaten_by(self, record: Metrics) -> bool:
        """Whether a model is better than counting, in the measure that both have."""
        if self.bpb is None or record["bpb"] is None:
            return record["ppl"] < self.ppl
        return record["bpb"] < self.bpb


@dataclass(frozen=True)
class ComparedBaseline(NgramBaseline):
    """The same beside a model, in its summary."""

    beaten: bool
    """Whether the model is better."""
