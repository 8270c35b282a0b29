"""What a launcher starts in tests/train/test_distributed.py: `newllm`, with mishaps on request.

Environment, each for process 1 alone: HURT=STEP:SIGNAL sends itself a signal after so many steps,
POISON=STEP makes what it carries there not a number.
"""

import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist

from newllm.cli import main
from newllm.train.signals import StopRequest
from newllm.train.trainer import Trainer

HURT, POISON = os.environ.get("HURT"), os.environ.get("POISON")
VICTIM = os.environ.get("RANK") == "1"
timed_step, fit = Trainer._timed_step, Trainer.fit


def hurt(trainer: Trainer, *arguments: Any) -> None:
    if VICTIM and str(trainer.progress.total_steps) == POISON:
        trainer.state = {
            name: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor
            for name, tensor in trainer.state.items()
        }
    timed_step(trainer, *arguments)
    if VICTIM and HURT is not None:
        step, number = HURT.split(":")
        if trainer.progress.total_steps == int(step):
            os.kill(os.getpid(), signal.Signals[number])


def fit_alike(trainer: Trainer, stop: StopRequest) -> bool:
    """Trains, and looks whether all processes have the same weights."""
    finished = fit(trainer, stop)
    if trainer.sharded:
        return finished
    own = [tensor.clone() for tensor in trainer.model.state_dict().values()]
    for tensor in own:
        dist.broadcast(tensor, src=0)
    same = zip(own, trainer.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "the processes have different weights"
    return finished


Trainer._timed_step = hurt  # type: ignore[method-assign]
Trainer.fit = fit_alike  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
