"""The learning rate over a run, and when the run ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Schedule:
    """Warm-up, constant, linear warm-down (Haegele et al. 2024, arXiv:2405.18392).

    Time is the share of the run done, 0..1. When validation stops improving during the constant
    part, the warm-down starts early instead of being thrown away: most of what a run gains, it
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

    def wind_down(self, done: float) -> bool:
        """Patience is exhausted at `done`: start the warm-down now.

        False if there is none to start (no warm-down, or it has begun): the run should end.
        """
        if self.warmdown_share == 0 or done >= self.warmdown_start:
            return False
        length = done * self.warmdown_share / (1.0 - self.warmdown_share)
        self.warmdown_start, self.end = done, min(1.0, done + length)
        return True
