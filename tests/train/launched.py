"""What a launcher starts in the tests of several processes: `newllm`, with mishaps on request.

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


def with_mishaps() -> None:
    """Let this process train as its environment says, and compare its weights in the end."""
    hurt_at, poison_at = os.environ.get("HURT"), os.environ.get("POISON")
    victim = os.environ["RANK"] == "1"
    timed_step, fit = Trainer._timed_step, Trainer.fit

    def hurt(trainer: Trainer, *arguments: Any) -> None:
        if victim and str(trainer.progress.total_steps) == poison_at:
            trainer.state = {
                name: torch.full_like(tensor, float("nan"))
                if tensor.is_floating_point()
                else tensor
                for name, tensor in trainer.state.items()
            }
        timed_step(trainer, *arguments)
        if victim and hurt_at is not None:
            step, number = hurt_at.split(":")
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
    with_mishaps()
    sys.exit(main())
