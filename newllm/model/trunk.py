"""What a model with memories beside its network says of each token, before its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from newllm.device import send


def _placed(index: Any, device: torch.device) -> Any:
    """An index whose tensors are where they are used."""
    if isinstance(index, tuple):
        return tuple(_placed(part, device) for part in index)
    return send(index, device) if isinstance(index, Tensor) else index


@dataclass(frozen=True)
class TrunkOutput:
    """Hidden states, and what the memories found; it is indexed like its `hidden`."""

    hidden: Tensor
    """[..., D]."""
    matches: Tensor | None = None
    """What recall found, int32 [...]; None without recall."""
    contexts: Tensor | None = None
    """Numbers of the contexts that the table of counts knows, -1 for none, int32 [..., K] on the
    CPU; None without counts."""

    def __getitem__(self, index: Any) -> TrunkOutput:
        """The same positions of all; what the memories found may be on the CPU."""
        parts = self.hidden, self.matches, self.contexts
        hidden, matches, contexts = (
            None if part is None else part[_placed(index, part.device)] for part in parts
        )
        assert hidden is not None
        return TrunkOutput(hidden, matches, contexts)

    def flat(self) -> TrunkOutput:
        """All positions in one dimension, N."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        matches = None if self.matches is None else self.matches.reshape(-1)
        contexts = self.contexts
        if contexts is not None:
            contexts = contexts.reshape(-1, contexts.shape[-1])
        return TrunkOutput(hidden, matches, contexts)

    @property
    def device(self) -> torch.device:
        return self.hidden.device


@dataclass(frozen=True)
class TokenScores:
    """How N positions predict what comes next."""

    nats: Tensor
    """-ln p(target), [N]."""
    hit: Tensor
    """Whether the target is the likeliest of all tokens, bool [N]."""
    without_counts: Tensor | None
    """-ln p(target) of the model without its table of counts, [N]; None where it has none."""
