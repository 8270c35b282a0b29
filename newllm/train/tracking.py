"""Where else a run's numbers go: one small interface, and the programs that people use.

Every number of `metrics.jsonl` goes there, under the same name, with the epoch as the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from newllm.config import Settings
from newllm.errors import require_packages
from newllm.results.runs import RunFiles

PROJECT = "newllm"
"""Name of the project that runs belong to, where a program has projects."""


class Tracker(Protocol):
    """What records are given to."""

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Take in the numbers of an epoch; epochs rise."""

    def close(self) -> None:
        """No more numbers come."""


class TensorBoard:
    """Curves in files of the run; a resumed run hides what was drawn from its epoch on."""

    def __init__(self, files: RunFiles) -> None:
        from torch.utils import tensorboard

        self._folder, self._make = str(files.curves), tensorboard.SummaryWriter
        self._writer: Any = None

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=epoch)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Service:
    """Weights & Biases (`wandb`), and Trackio, which has the same functions.

    A run that is resumed is one of its own there, with the same name, from its epoch on.
    """

    def __init__(self, module: str, files: RunFiles, settings: Settings) -> None:
        self._module, self._files, self._settings, self._run = module, files, settings, None

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        if self._run is None:
            self._run = import_module(self._module)
            self._run.init(
                project=PROJECT, name=self._files.name, config=self._settings.model_dump()
            )
        self._run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def make_tracker(files: RunFiles, settings: Settings) -> Tracker | None:
    """The tracker that a run asks for.

    Raises:
        UserError: its package is not installed.
    """
    name = settings.track or ("tensorboard" if settings.tensorboard else None)
    if name is None:
        return None
    wish = f"--track {name}" if settings.track else "--tensorboard"
    require_packages(wish, name, extra="track" if name == "tensorboard" else name)
    return TensorBoard(files) if name == "tensorboard" else Service(name, files, settings)
