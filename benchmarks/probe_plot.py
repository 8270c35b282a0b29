"""The probes' tables as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.measure import Row


def save_plot(tables: Mapping[str, list[Row]], path: str) -> None:
    """Draw one panel a table: accuracy over pairs, distance or length; loss over turns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 4), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        axes.set_title(title)
        if "turn" in rows[0]:
            _draw_turns(axes, rows)
        else:
            _draw_accuracy(axes, rows)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _draw_accuracy(axes: Any, rows: list[Row]) -> None:
    """One line a model; the columns end in a number (`pairs_4`, `length_64`)."""
    numbers = {name: int(end) for name in rows[0] if (end := name.rpartition("_")[2]).isdigit()}
    for row in rows:
        trained = row["parameters"] is not None
        axes.plot(
            list(numbers.values()),
            [row[name] for name in numbers],
            "o-" if trained else "k:",
            label=f"{row['architecture']} {row['context_dim']}" if trained else row["architecture"],
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(numbers.values()), [f"{number}" for number in numbers.values()])
    axes.set_xlabel(next(iter(numbers)).rpartition("_")[0])
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)


def _draw_turns(axes: Any, rows: list[Row]) -> None:
    """Nats per token by turn and speaker, with and without the turns before."""
    for speaker in dict.fromkeys(row["speaker"] for row in rows):
        own = [row for row in rows if row["speaker"] == speaker]
        turns = [row["turn"] for row in own]
        for label, column, style in (
            ("carried", "nats_per_token", "o-"),
            ("reset", "nats_per_token_reset", "o:"),
        ):
            axes.plot(turns, [row[column] for row in own], style, label=f"{speaker}, {label}")
    axes.set_xlabel("turn")
    axes.set_ylabel("nats per token")
