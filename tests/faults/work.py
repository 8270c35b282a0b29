"""What the processes do that are struck: small, and the same every time."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from newllm.cli import main
from newllm.curriculum import practise as practice
from newllm.curriculum.climb import climb
from newllm.inference.sampler import Sampling
from newllm.results.climb import ClimbConfig
from newllm.results.marks import Mark, add_marks
from newllm.train.trainer import Trainer
from newllm.trained import TrainedModel
from tests.faults.scenarios import SCENARIOS, best, write_rows


def warm() -> None:
    """Do once what the forked processes will do: then every kernel is loaded."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        os.environ["NEWLLM_CACHE"] = str(folder / "cache")
        rows = write_rows(folder / "rows")
        assert command(*SCENARIOS["train"].arguments(rows, folder)) == 0
        shutil.move(folder / "out", folder / "model")
        assert session(best(folder), str(folder / "a.session")) == 0


def command(*arguments: str) -> int:
    """A command line; what it prints goes where a terminal would show it."""
    sys.argv = ["newllm", *arguments]
    return main(arguments)


def session(checkpoint: str, file: str) -> int:
    """One turn more of a conversation, saved over the one before."""
    model = TrainedModel.load(checkpoint, "cpu")
    path = Path(file)
    chat = model.resume_chat(path) if path.exists() else model.chat(Sampling(seed=1))
    chat.say("hello", 4)
    chat.save(path)
    return 0


def climbed(rows: str, out: str, *resume: str) -> int:
    """One model through two levels; it grows on the way."""
    settings = {
        "context_dim": 64, "embed_dim": 16, "hidden_dim": 24, "pair_rows": 16, "vocab_size": 320,
        "batch_size": 8, "max_seq_length": 32, "epochs": 1, "device": "cpu",
    }  # fmt: skip
    climb(ClimbConfig(["dolly", "ultrachat"], rows, out, settings), bool(resume))
    return 0


def practised(file: str, rows: str, out: str, *resume: str) -> int:
    """A round of shown sums and one of practice, with rows of before among them."""
    replay = f"dolly={rows}/dolly"
    plan = practice.Practice(
        file, shown=4, rounds=1, problems=2, samples=1, tested=2, replay=replay, out=out,
        device="cpu",
    )  # fmt: skip
    setattr(practice, "_SHOWN_EPOCHS", 2)  # noqa: B010 (in this process alone)
    practice.practise(plan, bool(resume))
    return 0


def marks(dataset: str) -> int:
    """One measured mark more."""
    mark = Mark(dataset, "rows", 1.5, 1000, 1.0, {"0.001": 1.5}, "here", "today", "command")
    add_marks([mark])
    return 0


def terminated_twice(step: str, *arguments: str) -> int:
    """A command that gets SIGTERM twice within one step of its training."""
    original: Any = Trainer._timed_step

    def struck(self: Trainer, *rest: Any) -> None:
        if self.progress.total_steps == int(step):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        original(self, *rest)

    setattr(Trainer, "_timed_step", struck)  # noqa: B010 (a method, in this process alone)
    return command(*arguments)
