"""HH-RLHF: does the model find the answers likelier that people preferred.

Both dialogues of a row are scored from the first message in which they differ: the nats of all
assistant messages from there on (their text, and the end token that closes each), given everything
before, divided by the UTF-8 bytes of these messages. The share counts pairs where `chosen` costs
fewer nats per byte than `rejected`; 50% is chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from newllm.data.render import ChatRenderer
from newllm.datasets.conversations import Conversation
from newllm.datasets.hh_rlhf import hh_rlhf_conversation
from newllm.inference.decoder import read_chunks
from newllm.model import LanguageModel

DIALOGUES_AT_ONCE = 32
_READ_AT_ONCE = 256


@dataclass(frozen=True)
class Pair:
    """Two dialogues that begin alike."""

    chosen: Conversation
    rejected: Conversation
    alike: int
    """Messages that are the same in both, from the first on."""


def preference_pair(row: Mapping[str, Any]) -> Pair | None:
    """The dialogues of an HH-RLHF row; None where they are the same.

    Raises:
        ValueError: a malformed dialogue.
    """
    chosen = hh_rlhf_conversation(row)
    rejected = hh_rlhf_conversation(row, "rejected")
    alike = 0
    while alike < min(len(chosen), len(rejected)) and chosen[alike] == rejected[alike]:
        alike += 1
    # One that only goes on where the other ends has no answer of its own to compare.
    if alike == min(len(chosen), len(rejected)):
        return None
    return Pair(chosen, rejected, alike)


@dataclass(frozen=True)
class Side:
    """One of the two dialogues of a pair, in tokens."""

    ids: list[int]
    scored: list[bool]
    """True for the tokens that are compared: the answers that only this side has."""
    size: int
    """UTF-8 bytes of these answers."""


def pair_sides(renderer: ChatRenderer, pairs: Sequence[Pair]) -> list[tuple[Side, Side]]:
    """Chosen and rejected of each pair, in tokens."""
    dialogues = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    alike = [pair.chosen[: pair.alike] for pair in pairs]
    whole, before = renderer.documents(dialogues), renderer.documents(alike)
    sides = []
    for number, document in enumerate(whole):
        shared = before[number // 2]
        start = len(shared.ids)
        scored = [False] * start + document.assistant[start:]
        size = document.assistant_bytes - shared.assistant_bytes
        sides.append(Side(document.ids, scored, size))
    return list(zip(sides[::2], sides[1::2], strict=True))


@dataclass(frozen=True)
class PairScores:
    """What a model says of P pairs; all arrays are [P, 2], chosen first."""

    nats: np.ndarray
    sizes: np.ndarray
    """UTF-8 bytes."""

    @property
    def prefers_chosen(self) -> np.ndarray:
        """Where chosen costs fewer nats a byte, bool [P]."""
        chosen, rejected = (self.nats / self.sizes).T
        return chosen < rejected

    @property
    def longer_chosen(self) -> np.ndarray:
        """Where chosen has more bytes, bool [P]."""
        return self.sizes[:, 0] > self.sizes[:, 1]


def pair_scores(model: LanguageModel, pairs: Sequence[tuple[Side, Side]]) -> PairScores:
    """What a model in evaluation mode says of pairs."""
    sides = [side for pair in pairs for side in pair]
    nats = answer_nats(model, sides)
    sizes = np.array([side.size for side in sides], np.int64)
    return PairScores(nats.reshape(-1, 2), sizes.reshape(-1, 2))


def score_preferences(
    model: LanguageModel, renderer: ChatRenderer, pairs: Sequence[Pair]
) -> dict[str, Any]:
    """How often a model in evaluation mode finds `chosen` likelier per byte.

    Returns:
        prefers_chosen (share of pairs), standard_error (of that share), longer_chosen (share of
        pairs whose chosen side has more bytes: what a preference for length alone would reach),
        chosen_nats_per_byte, rejected_nats_per_byte (all nats over all bytes).
    """
    scores = pair_scores(model, pair_sides(renderer, pairs))
    share = float(scores.prefers_chosen.mean())
    chosen, rejected = scores.nats.sum(axis=0) / scores.sizes.sum(axis=0)
    return {
        "prefers_chosen": share,
        "standard_error": float((share * (1 - share) / len(pairs)) ** 0.5),
        "longer_chosen": float(scores.longer_chosen.mean()),
        "chosen_nats_per_byte": float(chosen),
        "rejected_nats_per_byte": float(rejected),
    }


RESAMPLES = 10_000


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of values [P] (Efron's percentile bootstrap over the pairs).

    Of differences, give each pair's: what two models find of the same pairs is not independent.
    """
    rng = np.random.default_rng(seed)
    values = values.astype(np.float64)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@torch.inference_mode()
def answer_nats(
    model: LanguageModel, sides: Sequence[Side], tables: Sequence[int] | None = None
) -> np.ndarray:
    """Nats of the compared answers of N dialogues, float64 [N]; the model in evaluation mode.

    `tables` says, of a model with counts, from which table each dialogue is predicted (default: 0,
    that of all rows).
    """
    device = next(model.parameters()).device
    nats = np.zeros(len(sides))
    by_length = sorted(range(len(sides)), key=lambda index: len(sides[index].ids))
    for start in range(0, len(by_length), DIALOGUES_AT_ONCE):
        chosen = by_length[start : start + DIALOGUES_AT_ONCE]
        ids = _padded([sides[index].ids for index in chosen])
        scored = _padded([sides[index].scored for index in chosen])[:, 1:]
        # Zeros behind a text are read as well: nothing is made of them, and cutting them off would
        # change the last bits of some architectures' numbers.
        texts, targets = ids[:, :-1].tolist(), ids[:, 1:]
        numbers = None if tables is None else [tables[index] for index in chosen]
        state = model.initial_state(len(chosen))
        for part, hidden, _ in read_chunks(model, texts, state, _READ_AT_ONCE, numbers):
            wanted = scored[:, part]
            logits = model.logits(hidden[wanted.to(device)]).float()
            following = targets[:, part][wanted].to(device)
            parts = F.cross_entropy(logits, following, reduction="none").double().numpy(force=True)
            np.add.at(nats, np.array(chosen)[wanted.nonzero()[:, 0].numpy()], parts)
    return nats


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of any lengths side by side, zeros (False) behind the shorter ones."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
