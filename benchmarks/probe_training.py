"""Training of the probes' small models: a plain loop over lessons of rising difficulty."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

import torch

from benchmarks.probe_tasks import Task
from newllm.model import LanguageModel, build_model
from newllm.settings import resolve
from newllm.train.optimizers import make_optimizers
from newllm.train.schedule import Schedule

Lesson = Callable[[int], Task]
"""Seed -> a batch."""

LAYERS, WIDTH = 2, 64
"""Depth, and width of the stream (of a GRU and an LSTM: as wide as their state)."""

_LEARNED, _RECENT = 0.4, 10
"""The next lesson begins when so many steps of the newest had fewer nats per answer on average."""
_NEWEST_SHARE = 0.7
"""Of the steps, how many take the newest lesson; the others repeat an earlier one."""


def train_on(
    lessons: Sequence[Lesson],
    vocab_size: int,
    architecture: str,
    context_dim: int,
    learning_rate: float,
    steps: int,
    seed: int,
    recall_slots: int = 0,
) -> LanguageModel:
    """Train a small model: the first lesson until it is learned, then the second as well, ..."""
    width = context_dim if architecture in ("gru", "lstm") else WIDTH
    settings = resolve(
        "dolly",
        {
            "architecture": architecture,
            "num_layers": LAYERS,
            "context_dim": context_dim,
            "embed_dim": width,
            "hidden_dim": 2 * width,
            "recall_slots": recall_slots,
            "dropout": 0.0,
            "weight_decay": 0.0,
            "learning_rate": learning_rate,
        },
    )
    torch.manual_seed(seed)
    model = build_model(settings.model_settings(), vocab_size)
    optimizers = make_optimizers(model, settings)
    schedule = Schedule.planned(warmup_share=0.02, warmdown_share=0.4)
    choice, newest, recent = random.Random(seed), 0, deque[float](maxlen=_RECENT)
    for step in range(steps):
        repeats = newest > 0 and choice.random() > _NEWEST_SHARE
        lesson = choice.randrange(newest) if repeats else newest
        task = lessons[lesson](step)
        targets = torch.from_numpy(task.targets)
        hidden, _ = model(torch.from_numpy(task.ids))
        loss = model.loss(hidden, targets) / (targets >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * schedule.factor((step + 1) / steps)
            optimizer.step()
            optimizer.zero_grad()
        if lesson == newest:
            recent.append(loss.item())
            if len(recent) == _RECENT and sum(recent) < _RECENT * _LEARNED:
                newest = min(newest + 1, len(lessons) - 1)
                recent.clear()
    return model.eval()
