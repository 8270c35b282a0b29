"""What a model scores: exact sums first, ratios last.

Sums (nats, tokens, hits, bytes) are merged across batches; a ratio is taken once, at the end, so
that no number depends on how rows were batched. Evaluation runs in fp32, whatever training used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

import torch
from torch import Tensor

from newllm.data.loader import IGNORED, EpochLoader, read_ahead
from newllm.data.shards import EncodedSplit
from newllm.data.tokenizers import Tokenizer, Word1000
from newllm.device import send, tf32
from newllm.model import LanguageModel
from newllm.model.loss import chunk_rows
from newllm.model.residual import Hidden, ResidualLM, placed
from newllm.model.trunk import TrunkOutput
from newllm.results.records import Metrics

EVALUATION_ROW = 256
"""Positions read at a time; the state is carried, so that no document is cut."""
EVALUATION_BATCH_SIZE = 32


@dataclass
class Sums:
    """Totals over scored tokens."""

    nats: float = 0.0
    tokens: int = 0
    hits: int = 0
    unk_tokens: int = 0
    assistant_nats: float = 0.0
    assistant_tokens: int = 0
    network_nats: float = 0.0
    """By the network without the model's counts; 0 where it has none."""


class Sharing(Protocol):
    """Processes that score a split together."""

    def sequences(self, count: int) -> slice:
        """Which of `count` sequences of a batch are this one's."""
        ...

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes."""
        ...


def evaluate(
    model: LanguageModel,
    split: EncodedSplit,
    tokenizer: Tokenizer,
    device: torch.device,
    batch_size: int = EVALUATION_BATCH_SIZE,
    processes: Sharing | None = None,
) -> Metrics:
    """Score every document of a split, on `device`; of several processes each a part.

    In fp32, but for products on a GPU from the A100 on (:func:`newllm.device.tf32`).

    Bits per byte divide by the bytes of the text itself, so they compare models with different
    tokenizers (the argument of nanochat's `evaluate_bpb`): role and end tokens cost nats but add no
    bytes. For word1000 they would count a lossy text, and are not given.
    """
    # What a sharded model gathers has to serve for training, too.
    sharded = isinstance(model, ResidualLM) and model.sharded
    with tf32(device), torch.no_grad() if sharded else torch.inference_mode():
        return _evaluate(model, split, tokenizer, device, batch_size, processes)


def _evaluate(
    model: LanguageModel,
    split: EncodedSplit,
    tokenizer: Tokenizer,
    device: torch.device,
    batch_size: int,
    processes: Sharing | None,
) -> Metrics:
    was_training = model.training
    model.eval()
    sums = Sums()
    part = slice(batch_size) if processes is None else processes.sequences(batch_size)
    loader = EpochLoader(split, EVALUATION_ROW, batch_size, part=part, assistant=True)
    state = placed(model, model.initial_state(loader.batch_size), device)
    unk = tokenizer.unk if isinstance(tokenizer, Word1000) else None
    where = torch.device("cpu") if model.TOKENS_ON_CPU else device
    totals = torch.zeros(len(_SUMMED), dtype=torch.float64, device=device)
    batches = loader.batches()
    for batch in read_ahead(batches) if device.type == "cuda" else batches:
        assert batch.assistant is not None
        hidden, state = model(send(batch.ids, where), state, send(batch.reset, where))
        scored = (batch.targets != IGNORED).nonzero(as_tuple=True)
        # The index stays on the CPU for what memories found, which is there.
        at = scored if isinstance(hidden, TrunkOutput) else tuple(send(x, device) for x in scored)
        said = hidden[at]
        targets, assistant = batch.targets[scored], batch.assistant[scored]
        sums.tokens += len(targets)
        sums.assistant_tokens += int(assistant.sum())
        sums.unk_tokens += int((targets == unk).sum()) if unk is not None else 0
        totals += _score(model, said, send(targets, device), send(assistant, device))
    for name, total in zip(_SUMMED, totals.tolist(), strict=True):  # a GPU is asked once
        setattr(sums, name, int(total) if name == "hits" else total)
    model.train(was_training)
    if processes is not None:
        own = astuple(sums)
        merged = processes.all_reduce_sum(own)
        sums = Sums(*(type(old)(new) for old, new in zip(own, merged, strict=True)))
    return summarize(sums, split, lossless=unk is None)


_SUMMED = "nats", "assistant_nats", "hits", "network_nats"
"""Fields of `Sums` that :func:`_score` adds up."""


def _score(model: LanguageModel, hidden: Hidden, targets: Tensor, assistant: Tensor) -> Tensor:
    """Those sums over positions [N], float64, where the model is."""
    total = torch.zeros(len(_SUMMED), dtype=torch.float64, device=targets.device)
    step = chunk_rows(model.vocab_size, targets.device)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        scores = model.token_scores(hidden[part], targets[part])  # type: ignore[arg-type]
        nats, without = scores.nats.double(), scores.without_counts
        of_network = total.new_zeros(()) if without is None else without.double().sum()
        said = nats.sum(), nats @ assistant[part].double(), scores.hit.sum().double(), of_network
        total += torch.stack(said)
    return total


def summarize(sums: Sums, split: EncodedSplit, lossless: bool) -> Metrics:
    """The ratios of finished sums; `lossless` says that the tokens hold the whole text."""
    content, assistant = int(split.content_bytes.sum()), int(split.assistant_bytes.sum())
    loss = sums.nats / sums.tokens
    metrics = Metrics(
        rows=len(split),
        tokens=sums.tokens,
        nats=sums.nats,
        loss=loss,
        ppl=perplexity(loss),
        accuracy=sums.hits / sums.tokens,
        unk_share=None if lossless else sums.unk_tokens / sums.tokens,
        bpb=bits_per_byte(sums.nats, content) if lossless else None,
        bpb_assistant=bits_per_byte(sums.assistant_nats, assistant) if lossless else None,
    )
    if sums.network_nats:
        metrics["loss_without_counts"] = sums.network_nats / sums.tokens
    return metrics


def bits_per_byte(nats: float, content_bytes: int) -> float | None:
    """nats / ln 2 / bytes; None without any byte."""
    return nats / math.log(2) / content_bytes if content_bytes else None


def perplexity(loss: float) -> float:
    """exp(nats per token); infinite rather than an error when it is absurd."""
    return math.exp(loss) if loss < 700 else math.inf
