"""What a finished training amounts to: its summary, from the trainer and its data."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch

import newllm
from newllm.config import Settings
from newllm.datasets import find_dataset
from newllm.device import cpu_model, give_back_freed_memory
from newllm.evaluate.floor import ngram_floor
from newllm.model.kernels import active_kernel
from newllm.results.marks import judge_bpb
from newllm.results.summary import Summary
from newllm.results.verdict import beats_floor, judge, next_steps
from newllm.train.trainer import Trainer


def summarize(
    run: str, settings: Settings, trainer: Trainer, data: Mapping[str, Any], checkpoint: Path
) -> Summary:
    """Everything there is to say about a finished run; the n-gram floor is counted here.

    Args:
        run: name of the run.
        settings: those of the run.
        trainer: the finished trainer.
        data: fingerprint, source, revision and accounting of the rows.
        checkpoint: where the best epoch is.
    """
    level, progress = find_dataset(settings.dataset), trainer.progress
    best = progress.history[progress.best_epoch - 1]
    give_back_freed_memory()  # the table of counts needs much, the steps' share of it no more
    floor = ngram_floor(trainer.data)
    bpb_mark = judge_bpb(
        settings.dataset, data["rows"], best["bpb"], trainer.parameters, progress.seconds / 60
    )
    return Summary(
        run=run,
        dataset=settings.dataset,
        level=level.number,
        settings=settings.model_dump(),
        parameters=trainer.parameters,
        data={**data, "vocab_size": trainer.data.tokenizer.vocab_size},
        best=best,
        epochs=len(progress.history),
        minutes=progress.seconds / 60,
        trained_tokens=progress.trained_tokens,
        floor={**asdict(floor), "beaten": beats_floor(best, floor)},
        verdict=replace(judge(level, settings, best), bpb_mark=bpb_mark),
        advice=tuple(next_steps(level, settings, best, floor)),
        checkpoint=str(checkpoint),
        versions={
            "newllm": newllm.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        machine=describe_machine(trainer),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def describe_machine(trainer: Trainer) -> dict[str, Any]:
    """What the training ran on; memory in bytes."""
    device = trainer.device
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "kernel": active_kernel(device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
    }
