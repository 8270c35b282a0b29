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

from newllm.data.render import ChatRenderer
from newllm.datasets.conversations import Conversation
from newllm.datasets.hh_rlhf import hh_rlhf_conversation
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


def score_preferences(
    model: LanguageModel,
    renderer: ChatRenderer,
    pairs: Sequence[Pair],
    at_once: int = DIALOGUES_AT_ONCE,
) -> dict[str, Any]:
    """How often a model in evaluation mode finds `chosen` likelier per byte.

    `at_once` dialogues are read side by side.

    Returns:
        prefers_chosen (share of pairs), standard_error (of that share), longer_chosen (share of
        pairs whose chosen side has more bytes: what a preference for length alone would reach),
        chosen_nats_per_byte, rejected_nats_per_byte (all nats over all bytes).
    """
    dialogues = [(pair.chosen, pair.alike) for pair in pairs]
    dialogues += [(pair.rejected, pair.alike) for pair in pairs]
    nats, sizes = _score(model, renderer, dialogues, at_once)
    (chosen, rejected), (long, short) = np.split(nats, 2), np.split(sizes, 2)
    share = float(np.mean(chosen / long < rejected / short))
    return {
        "prefers_chosen": share,
        "standard_error": float((share * (1 - share) / len(pairs)) ** 0.5),
        "longer_chosen": float(np.mean(long > short)),
        "chosen_nats_per_byte": float(chosen.sum() / long.sum()),
        "rejected_nats_per_byte": float(rejected.sum() / short.sum()),
    }


@torch.inference_mode()
def _score(
    model: LanguageModel,
    renderer: ChatRenderer,
    dialogues: Sequence[tuple[Conversation, int]],
    at_once: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes, float64 and int64 [N], of the answers from message `alike` on."""
    device = next(model.parameters()).device
    documents = renderer.documents([dialogue for dialogue, _ in dialogues])
    before = renderer.documents([dialogue[:alike] for dialogue, alike in dialogues])
    sizes = [d.assistant_bytes - b.assistant_bytes for d, b in zip(documents, before, strict=True)]
    nats = np.zeros(len(documents))
    by_length = sorted(range(len(documents)), key=lambda index: len(documents[index].ids))
    for start in range(0, len(by_length), at_once):
        chosen = by_length[start : start + at_once]
        longest = len(documents[chosen[-1]].ids)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        scored = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for sequence, index in enumerate(chosen):
            document, shared = documents[index], len(before[index].ids)
            ids[sequence, : len(document.ids)] = torch.tensor(document.ids)
            scored[sequence, shared : len(document.ids)] = torch.tensor(document.assistant[shared:])
        state = None
        for first in range(0, longest - 1, _READ_AT_ONCE):
            stop = min(first + _READ_AT_ONCE, longest - 1)
            hidden, state = model(ids[:, first:stop].to(device), state)
            wanted = scored[:, first + 1 : stop + 1]
            logits = model.logits(hidden[wanted.to(device)]).float()
            targets = ids[:, first + 1 : stop + 1][wanted].to(device)
            parts = F.cross_entropy(logits, targets, reduction="none").double().numpy(force=True)
            np.add.at(nats, np.array(chosen)[wanted.nonzero()[:, 0].numpy()], parts)
    return nats, np.array(sizes)
