"""What the benchmarks share: timing side by side, memory, facts of the machine, tables."""

from __future__ import annotations

import functools
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from types import TracebackType
from typing import Any, Literal, get_args, get_origin

import click
import numpy as np
import psutil
import torch

import newllm
from newllm.config import Settings, option_name
from newllm.device import cpu_model
from newllm.model.kernels import active_kernel

Row = dict[str, Any]
"""One line of a table: plain values by column."""

_PACKAGES = ("torch", "numpy", "numba", "tokenizers")


@dataclass
class Report:
    """What a benchmark found: tables by title, and facts about what was measured."""

    tables: dict[str, list[Row]]
    facts: Row = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, with the machine's facts."""
        return {"machine": machine_facts(), "facts": self.facts, "tables": self.tables}

    def markdown(self) -> str:
        """The same as a piece of `docs/BENCHMARKS.md`."""
        lines = [_sentence(machine_facts()), *([_sentence(self.facts)] if self.facts else [])]
        tables = [f"**{title}**\n\n{markdown_table(rows)}" for title, rows in self.tables.items()]
        return "\n\n".join([*lines, *tables])


def report_options(function: Callable[..., Report]) -> Callable[..., None]:
    """Print the report that a command's function returns; adds the option --json."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(function)
    def print_report(as_json: bool, **options: Any) -> None:
        report = function(**options)
        click.echo(json.dumps(report.to_dict()) if as_json else report.markdown())

    return print_report


def setting_options(*fields: str) -> Callable[[Any], Any]:
    """Add an option for each of these settings of a training; None where it is not given."""

    def decorate(command: Any) -> Any:
        for name in reversed(fields):
            info = Settings.model_fields[name]
            kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
            literal = get_origin(info.annotation) is Literal
            kind: Any = click.Choice(kinds) if literal else (*kinds, info.annotation)[0]
            add = click.option(option_name(name), name, type=kind, help=info.description)
            command = add(command)
        return command

    return decorate


def progress(text: str) -> None:
    """Say on the error channel how far a long benchmark is."""
    click.echo(text, err=True)


# -- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """How fast one candidate was."""

    name: str
    seconds: float
    """Of one call, median over the rounds."""
    per_second: float
    """Work done in a second, median over the rounds."""
    spread: float
    """Range of the middle half of the rounds, as a share of the median."""
    ratio: float
    """Speed over the baseline's in the same round, median over the rounds."""


def rounds(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    baseline: str | None = None,
    work: float | Mapping[str, float] = 1.0,
) -> list[Timing]:
    """Run candidates side by side (A B C A B C ..), after one call of each that does not count.

    Neighbours in time see the same machine: what else runs there changes their seconds, but hardly
    their ratio.

    Args:
        candidates: name -> what is timed. One that returns a float has timed itself, in seconds.
        repeats: number of rounds.
        baseline: the candidate that the others are compared with (default: the first).
        work: what one call does (tokens, rows), of each candidate or by name.
    """
    for run in candidates.values():
        run()
    seconds = {name: np.empty(repeats) for name in candidates}
    for index in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            own = run()
            elapsed = time.perf_counter() - started
            seconds[name][index] = own if isinstance(own, float) else elapsed
    speeds = {
        name: (work[name] if isinstance(work, Mapping) else work) / taken
        for name, taken in seconds.items()
    }
    compared = speeds[baseline if baseline is not None else next(iter(candidates))]
    timings = []
    for name, taken in seconds.items():
        low, middle, high = np.percentile(taken, (25, 50, 75)).tolist()
        speed, ratio = np.median(speeds[name]), np.median(speeds[name] / compared)
        timings.append(Timing(name, middle, float(speed), (high - low) / middle, float(ratio)))
    return timings


# -- memory --------------------------------------------------------------------------------------

_SAMPLING_SECONDS = 0.02


class PeakMemory:
    """Resident memory of a process and those it starts, sampled while the block runs.

    Args:
        process: the process (default: this one).

    >>> with PeakMemory() as memory:
    ...     block = bytearray(50_000_000)
    >>> memory.grown_mb > 40
    True
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()

    def __enter__(self) -> PeakMemory:
        self._before = self._peak = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._peak = max(self._peak, self._resident())

    @property
    def peak_mb(self) -> float:
        """The most that was resident."""
        return self._peak / 1e6

    @property
    def grown_mb(self) -> float:
        """The same, less what was resident before."""
        return (self._peak - self._before) / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLING_SECONDS):
            self._peak = max(self._peak, self._resident())

    def _resident(self) -> int:
        total = 0
        try:
            processes = [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return 0
        for process in processes:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return total


# -- facts and tables ----------------------------------------------------------------------------


def machine_facts() -> Row:
    """Date, versions, processor, threads: what a time means nothing without."""
    return {
        "date": date.today().isoformat(),
        "newllm": newllm.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(psutil.getloadavg()[0], 1),
        "kernel": active_kernel("cpu"),
    }


def markdown_table(rows: Sequence[Row]) -> str:
    """A table in Markdown; the columns are the keys of the first row."""
    columns = list(rows[0]) if rows else []
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[format_value(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_value(value: Any) -> str:
    """A value as people read it: three significant digits or more, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _sentence(facts: Row) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {format_value(v)}" for name, v in facts.items())
