"""Trainings as processes of their own, on one core or several: what comparisons are made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm.config import option_name

ROOT = Path(__file__).parent.parent


def run_module(arguments: Sequence[str], log: Path, threads: int = 1) -> None:
    """Run `python -m ...` on so many threads, its output going to the end of a file.

    Raises:
        CalledProcessError: it failed; the log says why.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    counts = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as file:
        subprocess.run(
            [sys.executable, "-m", *arguments],
            check=True,
            stdout=file,
            stderr=file,
            env={**os.environ, **counts, "PYTHONPATH": path},
        )


def train_trial(
    dataset: str,
    name: str,
    settings: Mapping[str, Any],
    out: Path,
    threads: int = 1,
    program: Sequence[str] = ("newllm",),
) -> Path:
    """Train, unless it was done before; the best checkpoint.

    Args:
        dataset: name of the data set.
        name: of the run.
        settings: of the run; lists are options given several times.
        out: folder of its files; what it prints goes to `NAME.log` there.
        threads: cores it uses.
        program: the module that has the command line, and what stands before the command.
    """
    words = [*program, "train", dataset, "--name", name, "--out", str(out), "--resume"]
    for field, value in settings.items():
        for word in value if isinstance(value, list) else [value]:
            words += [option_name(field), str(word)]
    out.mkdir(parents=True, exist_ok=True)
    run_module(words, out / f"{name}.log", threads)
    return out / f"best_{name}.pt"
