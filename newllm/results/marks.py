"""Pass marks in bits per byte: what a tuned GRU reaches on the same rows in the same training time.

A published perplexity says something only in its own vocabulary. This mark holds for every lossless
tokenizer: it is beaten or not on the very rows it was measured on, by a model that had no more
parameters and no more minutes than the GRU, give or take 5%. The package brings those measured so
far (`marks.json`); `newllm bench marks` measures more, for one's own rows, machine and budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from newllm.errors import UserError
from newllm.files import cache_folder, write_text

TOLERANCE = 1.05
"""A run may have so many times the GRU's parameters or minutes and still be judged by it."""


@dataclass(frozen=True)
class Mark:
    """One measured mark."""

    dataset: str
    rows: str
    """Fingerprint of the rows; the mark says nothing about others."""
    bpb: float
    """Bits per byte of the validation rows, the best of all rates."""
    parameters: int
    minutes: float
    """Of training."""
    rates: dict[str, float]
    """The tuning grid: learning rate -> bits per byte."""
    machine: str
    date: str
    command: str

    @property
    def how(self) -> str:
        """In a few words, how it was measured."""
        return f"a GRU, the best of {len(self.rates)} learning rates, {self.machine}, {self.date}"


@dataclass(frozen=True)
class BpbVerdict:
    """Whether a run is better than the mark that fits it."""

    bpb: float
    """Of the mark."""
    parameters: int
    """Of the model that the mark was measured with."""
    minutes: float
    """It was trained for."""
    cleared: bool
    how: str
    """In a few words, how the mark was measured."""


def own_marks_file() -> Path:
    """Where marks measured on this machine are kept."""
    return cache_folder() / "marks.json"


def known_marks() -> list[Mark]:
    """The package's marks, and those measured on this machine.

    Raises:
        UserError: the machine's own file is damaged.
    """
    shipped = Path(__file__).with_name("marks.json")
    return [mark for path in (shipped, own_marks_file()) for mark in _read(path)]


def add_marks(marks: Iterable[Mark]) -> Path:
    """Add marks to the machine's own, in place of equal measurements; returns their file."""
    path = own_marks_file()
    known = [*_read(path), *marks]
    kept = {(mark.dataset, mark.rows, mark.parameters, mark.minutes): mark for mark in known}
    content = json.dumps([asdict(mark) for mark in kept.values()], indent=1)
    write_text(path, content + "\n")
    return path


def judge_bpb(
    dataset: str, rows: str, bpb: float | None, parameters: int, minutes: float
) -> BpbVerdict | None:
    """The verdict by the mark that fits a run; None where no mark does.

    `rows` is the fingerprint of its rows, `bpb` what it reached: None in a protocol without it.
    """
    fitting = [
        mark
        for mark in known_marks()
        if (mark.dataset, mark.rows) == (dataset, rows)
        and parameters <= TOLERANCE * mark.parameters
        and minutes <= TOLERANCE * mark.minutes
    ]
    if bpb is None or not fitting:
        return None
    mark = min(fitting, key=lambda mark: (mark.minutes, mark.parameters))
    return BpbVerdict(mark.bpb, mark.parameters, mark.minutes, bpb < mark.bpb, mark.how)


def _read(path: Path) -> list[Mark]:
    try:
        return [Mark(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a file of marks ({error}); delete it") from None
