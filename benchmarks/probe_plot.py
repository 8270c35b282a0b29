"""The probes' tables as one picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.measure import Row

_STYLES = ("-", "--", ":")
"""Of an architecture's lines, when it has several; its colour is the same in every panel."""


def save_plot(tables: Mapping[str, list[Row]], path: str) -> None:
    """Draw one panel a table: accuracy over pairs, distance or length; loss over turns."""
    from matplotlib.figure import Figure

    columns = min(2, len(tables))
    lines = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(5 * columns, 5 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for unused in panels[len(tables) :]:
        unused.remove()
    rows = [row for table in tables.values() for row in table]
    rows.sort(key=lambda row: "model" in row)  # architectures first: they have the first colours
    names = [row.get("architecture") or row["model"] for row in rows]
    colours = {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys(names))}
    for axes, (title, table) in zip(panels, tables.items(), strict=False):
        axes.set_title(title)
        if "turn" in table[0]:
            _draw_turns(axes, table, colours)
        else:
            _draw_accuracy(axes, table, colours)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path, dpi=150)


def _draw_accuracy(axes: Any, rows: list[Row], colours: Mapping[str, str]) -> None:
    """One line a model; the columns end in a number (`pairs_4`, `length_64`)."""
    numbers = {name: int(end) for name in rows[0] if (end := name.rpartition("_")[2]).isdigit()}
    drawn: Counter[str] = Counter()
    for row in rows:
        name, trained = row["architecture"], row["parameters"] is not None
        axes.plot(
            list(numbers.values()),
            [row[column] for column in numbers],
            color=colours[name] if trained else "black",
            linestyle=_STYLES[drawn[name] % len(_STYLES)] if trained else ":",
            marker="o" if trained else None,
            label=f"{name} {row['context_dim']}" if trained else name,
        )
        drawn[name] += 1
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(numbers.values()), [f"{number}" for number in numbers.values()])
    axes.set_xlabel(next(iter(numbers)).rpartition("_")[0])
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)


def _draw_turns(axes: Any, rows: list[Row], colours: Mapping[str, str]) -> None:
    """What the state saves of each turn's loss, by model and speaker."""
    for model, speaker in dict.fromkeys((row["model"], row["speaker"]) for row in rows):
        own = [row for row in rows if (row["model"], row["speaker"]) == (model, speaker)]
        axes.plot(
            [row["turn"] for row in own],
            [100 * row["saved_share"] for row in own],
            color=colours[model],
            linestyle="-" if speaker == "assistant" else ":",
            marker="o",
            label=f"{model}, {speaker}",
        )
    axes.set_xticks(range(1, 1 + max(row["turn"] for row in rows)))
    axes.set_xlabel("turn")
    axes.set_ylabel("% of the loss that earlier turns save")
