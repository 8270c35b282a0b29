"""MATH answers: is the result in the box right, in whatever form it is written.

Compared are the last `\\boxed{}` of the answer and of the row's solution, by `math-verify`: 1/2 and
0.5 are equal, units are ignored, sets have no order, intervals know their ends. It is lenient here
and there (50% equals 50 and 0.5), and it judges results, not the way to them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.errors import UserError
from newllm.inference.greedy import Answer

COMPARE_SECONDS = 5.0
"""For one pair of results; after that they count as different."""

_WORKER = Path(__file__).with_name("math_worker.py")
_START_SECONDS = 60.0
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def boxed(text: str) -> str | None:
    """What stands in the last box of a text; None without one, or where it is not closed.

    >>> boxed(r"so $x = \\boxed{\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    """
    matches = list(_BOX.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :]
    if not rest.startswith("{"):  # `\boxed 5`
        single = re.match(r"[^\s${}\\.,]+", rest)
        return single[0] if single else None
    depth = 0
    for place, character in enumerate(rest):
        escaped = place > 0 and rest[place - 1] == "\\"
        depth += 0 if escaped else (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    return None


@dataclass(frozen=True)
class MathTask:
    """A problem with a known result."""

    result: str
    subject: str
    level: str


def math_task(row: Mapping[str, Any]) -> MathTask | None:
    """The task of a MATH row; None where its solution has no box."""
    result = boxed(row["solution"])
    if not result:
        return None
    return MathTask(result, str(row.get("type", "unknown")), str(row.get("level", "unknown")))


def equal_results(
    pairs: Iterable[tuple[str, str]], seconds: float = COMPARE_SECONDS
) -> list[bool | None]:
    """Whether (expected, given) results mean the same; None where that took too long.

    The comparison runs in a process of its own, which is ended and begun anew when it takes longer
    than `seconds` or all of its memory.
    """
    equal: list[bool | None] = []
    worker: subprocess.Popen[str] | None = None
    try:
        for expected, given in pairs:
            if expected == given:  # also what no algebra can read
                equal.append(True)
                continue
            if worker is None:
                worker = _start()
            line = _ask(worker, json.dumps({"expected": expected, "given": given}), seconds)
            equal.append(json.loads(line) if line else None)
            if not line:
                _end(worker)
                worker = None
    finally:
        if worker is not None:
            _end(worker)
    return equal


def _start() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    if not _ask(worker, "", _START_SECONDS):
        _end(worker)
        raise UserError("--skills: math-verify cannot be started (python -c 'import math_verify')")
    return worker


def _ask(worker: subprocess.Popen[str], question: str, seconds: float) -> str:
    """One line to the worker (none, if empty) and one line back; "" where it ended, or had to."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    timer = threading.Timer(seconds, worker.kill)
    timer.start()
    try:
        if question:
            worker.stdin.write(question + "\n")
            worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        timer.cancel()
    return line if line.endswith("\n") else ""


def _end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()


def score_math(
    tasks: Sequence[MathTask], answers: Sequence[Answer], seconds: float = COMPARE_SECONDS
) -> dict[str, Any]:
    """Fractions of answers whose box is there, and right; `seconds` are for one comparison.

    Returns:
        boxed (fraction of answers with a box), right (fraction of all rows), undecided (comparisons
        that took too long, counted as wrong), by_subject and by_level: name -> {rows, right}.
    """
    given = [boxed(answer.text) for answer in answers]
    asked = [(t.result, g) for t, g in zip(tasks, given, strict=True) if g]
    verdicts = iter(equal_results(asked, seconds))
    right: list[bool | None] = [next(verdicts) if result else False for result in given]
    return {
        "boxed": sum(result is not None for result in given) / len(tasks),
        "right": sum(map(bool, right)) / len(tasks),
        "undecided": right.count(None),
        "by_subject": _by([task.subject for task in tasks], right),
        "by_level": _by([task.level for task in tasks], right),
    }


def _by(names: Sequence[str], right: Sequence[bool | None]) -> dict[str, dict[str, Any]]:
    """Rows and fraction of right answers of each name, in the order of the names."""
    groups: dict[str, list[bool]] = {}
    for name, verdict in zip(names, right, strict=True):
        groups.setdefault(name, []).append(bool(verdict))
    return {
        name: {"rows": len(group), "right": sum(group) / len(group)}
        for name, group in sorted(groups.items())
    }
