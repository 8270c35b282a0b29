"""Where a run stands, as plain values that are stored as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from newllm.config import Settings
from newllm.results.records import EpochRecord, Metrics

MIN_IMPROVEMENT = 0.001
"""Nats per token below which a lower validation loss is no improvement."""

COLAB_MINUTES = 90
"""After so long a free Colab session is cut off."""


@dataclass
class Progress:
    """Where a run stands. Plain values, stored as they are."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    """Time spent in training steps, over all sessions."""
    epoch_nats: float = 0.0
    epoch_tokens: int = 0
    epoch_seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_loss: float = float("inf")
    best_epoch: int = 0
    epochs_without_improvement: int = 0
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)

    def end_epoch(self, epochs: int, metrics: Metrics) -> EpochRecord:
        """Close an epoch; its record.

        Args:
            epochs: of the whole run.
            metrics: of the validation rows.
        """
        best = metrics["loss"] < self.best_loss
        improved = metrics["loss"] < self.best_loss - MIN_IMPROVEMENT
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        if best:
            self.best_loss, self.best_epoch = metrics["loss"], self.epoch + 1
        record = self._record(epochs, metrics, best)
        self.history.append(record)
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_nats, self.epoch_tokens, self.epoch_seconds = 0.0, 0, 0.0
        return record

    def _record(self, epochs: int, metrics: Metrics, best: bool) -> EpochRecord:
        """The epoch's numbers; the one place they are put together."""
        return {
            "epoch": self.epoch + 1,
            "epochs": epochs,
            "steps": self.total_steps,
            "trained_tokens": self.trained_tokens,
            "train_loss": self.epoch_nats / max(1, self.epoch_tokens),
            **metrics,
            "best": best,
            "skipped_steps": self.skipped_steps,
            "seconds": self.epoch_seconds,
            "total_seconds": self.seconds,
        }


def clip_norm(settings: Settings, epoch: int) -> float:
    """Gradient norm above which gradients are scaled down; `original` loosens it as published."""
    if settings.architecture != "original":
        return 1.0
    return 0.5 if epoch < 10 else 1.0 if epoch < 30 else 2.0


def differences(stored: Mapping[str, Any], processes: int) -> Iterator[str]:
    """What makes a resumed run another than it would have been, a line each.

    Args:
        stored: the trainer's part of a resume file; one process may not be said.
        processes: how many there are now.
    """
    for what, now in (("threads", torch.get_num_threads()), ("processes", processes)):
        before = stored.get(what, 1)
        if before != now:
            yield (
                f"Resumed with {now} {what} instead of {before}: the run goes on, but not bit "
                "for bit as it would have."
            )


def describe_expectation(seconds: float, epochs: int) -> str:
    """How long a run will take, with a warning where a Colab session would not last."""
    minutes = seconds / 60
    length = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    line = f"Expected: about {length if minutes >= 1.5 else '1 minute'} for {epochs} epochs"
    if minutes > COLAB_MINUTES:
        line += (
            f"; a Colab session is cut off after {COLAB_MINUTES}: the run goes on with --resume, "
            f"or fits with --minutes {COLAB_MINUTES - 10}"
        )
    return line
