"""What changes over a run: the learning rate, dropout, decay; and when the run ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.config import Settings
from newllm.model import LanguageModel
from newllm.model.spec import EPOCHS_UNREGULARISED, find_spec
from newllm.train.optimizers import VECTOR_RATE

PAIR_DECAY = 4.0
"""Weight decay of the bigram hash embedding, times its rate, from the third epoch on: rows of pairs
that do not come back fade. Without it six epochs ended 4% higher in bits per byte (docs/LOG.md)."""


@dataclass
class Schedule:
    """Warm-up, constant, linear warmdown (Haegele et al. 2024, arXiv:2405.18392).

    Time is the fraction of the run done, 0..1. When validation stops improving during the constant
    part, the warmdown starts early instead of being thrown away: most of what a run gains, it
    gains there.
    """

    warmup_share: float
    warmdown_share: float
    warmdown_start: float = 1.0
    end: float = 1.0

    @classmethod
    def planned(cls, warmup_share: float, warmdown_share: float) -> Schedule:
        return cls(warmup_share, warmdown_share, warmdown_start=1.0 - warmdown_share)

    def factor(self, done: float) -> float:
        """Multiple of the peak rate at `done`."""
        if done < self.warmup_share:
            return done / self.warmup_share
        if done < self.warmdown_start or self.warmdown_share == 0:
            return 1.0
        return max(0.0, (self.end - done) / (self.end - self.warmdown_start))

    def finished(self, done: float) -> bool:
        return done >= self.end

    def start_warmdown(self, done: float) -> bool:
        """Patience is exhausted at `done`: begin the warmdown now.

        False if there is none to start (no warmdown, or it has begun): the run should end.
        """
        if self.warmdown_share == 0 or done >= self.warmdown_start:
            return False
        length = done * self.warmdown_share / (1.0 - self.warmdown_share)
        self.warmdown_start, self.end = done, min(1.0, done + length)
        return True


def set_dropout(model: LanguageModel, epoch: int) -> None:
    """Dropout after `epoch` epochs: none in the first ones (`original` always drops, as published).

    Dropping late: Liu et al. 2023, "Dropout Reduces Underfitting", arXiv:2303.01500, found it to
    regularise as well as dropping all the time.
    """
    settings = model.settings
    drops = epoch >= find_spec(settings.architecture).epochs_without_dropout
    model.set_dropout(settings.dropout if drops else 0.0)


def decays_pairs(epoch: int) -> bool:
    """Whether the bigram hash embedding decays when so many epochs are finished."""
    return epoch >= EPOCHS_UNREGULARISED


def pair_decay_amount(settings: Settings, rate_factor: float) -> float:
    """What a step at the schedule's `rate_factor` takes of the bigram hash embedding, 0..1."""
    return min(1.0, settings.learning_rate * VECTOR_RATE * rate_factor * PAIR_DECAY)


@torch.no_grad()
def decay_pairs(model: LanguageModel, share: Tensor | float) -> None:
    """Shrink the bigram hash embedding by this share, apart from its gradient as in AdamW."""
    for table in model.late_decaying():
        table.mul_(1 - share)
