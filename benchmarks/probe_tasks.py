"""What a model with a state of fixed size remembers: synthetic tasks, and later turns of dialogues.

The tasks are functions of a seed; their answers are known, so that a wrong one is the model's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.data.render import ChatRenderer, Document
from newllm.datasets.conversations import Conversation
from newllm.model import LanguageModel

RECALL_KEYS, RECALL_VALUES = 32, 8
RECALL_VOCABULARY = RECALL_KEYS + RECALL_VALUES
"""Ids 0..31 are keys, 32..39 values."""

PARITY_VOCABULARY = 4
"""Ids 0 and 1 are bits, 2 and 3 say even and odd."""


class Task(NamedTuple):
    """Rows of a synthetic task, [N, T] each."""

    ids: np.ndarray
    targets: np.ndarray
    """The right answer at each position, `IGNORED` where nothing is asked."""


def recall_task(seed: int, rows: int, pairs: int, length: int) -> Task:
    """Multi-query associative recall (MQAR; Arora et al. 2023, "Zoology", arXiv:2312.04927).

    Each row shows so many pairs of a key and a value (the keys all different), then asks for the
    values of keys drawn from them at random, each of which follows: `k1 v1 k2 v2 .. | k2 v2 k1 v1
    ..`. Unlike in the paper nothing else stands between the questions, so that a row asks as often
    as it can. Of `rows` N and `length` T; 1..32 `pairs`, and T is at least twice as many.
    """
    rng = np.random.default_rng((seed, rows, pairs, length))
    keys = rng.permuted(np.tile(np.arange(RECALL_KEYS), (rows, 1)), axis=1)[:, :pairs]
    values = RECALL_KEYS + rng.integers(RECALL_VALUES, size=(rows, pairs))
    asked = rng.integers(pairs, size=(rows, (length + 1) // 2 - pairs))
    order = np.hstack([np.tile(np.arange(pairs), (rows, 1)), asked])
    ids = np.stack([np.take_along_axis(part, order, axis=1) for part in (keys, values)], axis=2)
    targets = np.full_like(ids, IGNORED)
    targets[:, pairs:, 0] = ids[:, pairs:, 1]
    return Task(*(part.reshape(rows, -1)[:, :length] for part in (ids, targets)))


def recall_distances(task: Task) -> np.ndarray:
    """Tokens since the key of each question of a recall task stood last, [N, T]; else 0."""
    distances = np.zeros_like(task.ids)
    for row, place in zip(*np.nonzero(task.targets != IGNORED), strict=True):
        before = np.flatnonzero(task.ids[row, :place] == task.ids[row, place])
        distances[row, place] = place - before[-1]
    return distances


def recall_guess(task: Task) -> float:
    """Accuracy of always answering a row's most frequent value: memory of values, not of pairs."""
    hits = 0
    for ids, targets in zip(task.ids, task.targets, strict=True):
        start = int(np.argmax(targets != IGNORED))
        values, counts = np.unique(ids[1:start:2], return_counts=True)
        hits += int((targets == values[counts.argmax()]).sum())
    return hits / int((task.targets != IGNORED).sum())


def parity_task(seed: int, rows: int, length: int) -> Task:
    """Random bits; the answer at each is whether the ones so far are even or odd in number.

    A state that only fades, with gates between 0 and 1, cannot keep it at every length (Grazzi et
    al. 2024, "Unlocking state-tracking in linear RNNs through negative eigenvalues",
    arXiv:2411.12537).
    """
    bits = np.random.default_rng((seed, rows, length)).integers(2, size=(rows, length))
    return Task(bits, 2 + np.cumsum(bits, axis=1) % 2)


@torch.inference_mode()
def answers(model: LanguageModel, task: Task) -> np.ndarray:
    """Whether the model's first choice is right, bool [N, T]; False where nothing is asked."""
    device = next(model.parameters()).device
    hidden, _ = model(torch.from_numpy(task.ids).to(device))
    chosen = model.logits(hidden).argmax(dim=-1).numpy(force=True)
    return (chosen == task.targets) & (task.targets != IGNORED)


# -- dialogues -----------------------------------------------------------------------------------


@dataclass
class TurnSums:
    """Totals over the same turn of many dialogues, of one speaker."""

    dialogues: int = 0
    tokens: int = 0
    content_bytes: int = 0
    nats_carried: float = 0.0
    """With all earlier turns in the state."""
    nats_reset: float = 0.0
    """As if the dialogue began with this turn."""

    def __iadd__(self, other: TurnSums) -> TurnSums:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        return self


def exchanges(conversation: Conversation) -> list[Conversation]:
    """The turns of a dialogue, each up to an assistant's message; what follows the last is cut."""
    turns: list[Conversation] = [[]]
    for message in conversation:
        turns[-1].append(message)
        if message["role"] == "assistant":
            turns.append([])
    return turns[:-1]


def turn_losses(
    model: LanguageModel, renderer: ChatRenderer, conversations: Iterable[Conversation]
) -> dict[tuple[int, str], TurnSums]:
    """What earlier turns are worth: the loss of turn k with and without them.

    Dialogues that nobody answers are passed over.

    Returns:
        (k, "user" or "assistant") -> sums over all dialogues, k = 1, 2, ..; "user" is all that the
        assistant does not say, but for a turn's first token, whose role is no secret after <bos>.
        Turn 1 is the same either way.
    """
    sums: dict[tuple[int, str], TurnSums] = {}
    for conversation in conversations:
        turns = exchanges(conversation)
        if not turns:
            continue
        parts = renderer.documents(turns)
        whole = renderer.documents([[message for turn in turns for message in turn]])
        carried = np.concatenate(_nats(model, whole))
        begin = 0
        for number, (part, alone) in enumerate(zip(parts, _nats(model, parts), strict=True), 1):
            together = carried[begin : begin + len(alone)]
            begin += len(alone)
            assistant = np.array(part.assistant[1:])
            user = ~assistant
            user[0] = False
            for speaker, chosen, size in (
                ("user", user, part.content_bytes - part.assistant_bytes),
                ("assistant", assistant, part.assistant_bytes),
            ):
                nats = float(together[chosen].sum()), float(alone[chosen].sum())
                total = sums.setdefault((number, speaker), TurnSums())
                total += TurnSums(1, int(chosen.sum()), size, *nats)
    return sums


@torch.inference_mode()
def _nats(model: LanguageModel, documents: list[Document]) -> list[np.ndarray]:
    """-ln p of every token but the first of each document, read one after the other, float64."""
    device = next(model.parameters()).device
    ids = torch.tensor([token for document in documents for token in document.ids])
    lengths = [len(document.ids) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    reset = torch.zeros(1, len(ids), dtype=torch.bool)
    reset[0, starts] = True
    hidden, _ = model(ids[None].to(device), None, reset.to(device))
    logits: Tensor = model.logits(hidden[0, :-1]).float()
    nats = F.cross_entropy(logits, ids[1:].to(device), reduction="none").numpy(force=True)
    # Nothing predicts the first token of the next document.
    return [
        nats[start : start + length - 1].astype(np.float64)
        for start, length in zip(starts, lengths, strict=True)
    ]
