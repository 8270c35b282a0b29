"""What is practised, and what `newllm prefer` and `newllm practise` leave to be read.

Earlier versions wrote neither format nor version into these files: they are of version 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from newllm.errors import UserError
from newllm.files import write_text

VERSION = 1
_PREFERENCES, _PRACTICE = "new-llm preferences", "new-llm practice"


@dataclass(frozen=True)
class Practice:
    """What is practised, and how."""

    file: str
    """The checkpoint that practice begins with."""
    task: Literal["arithmetic", "code", "math"] = "arithmetic"
    grade: int = 1
    data: str = "hub"
    """Where MATH's rows are."""
    shown: int = 300
    """Solved problems that are shown first."""
    rounds: int = 8
    problems: int = 1000
    """New problems a round."""
    samples: int = 2
    """Answers to each."""
    temperature: float = 0.7
    goal: float = 0.95
    """Share of right answers at which practice ends."""
    tested: int = 200
    """Unseen problems that the model is tested with, the same every time."""
    replay: str | None = None
    """Rows of before that are mixed in, as DATASET=PATH; None: of the data set of `file`."""
    replay_share: float = 0.1
    learning_rate: float = 0.002
    batch_size: int = 8
    seed: int = 0
    out: str = "checkpoints"
    name: str = "practice"
    device: str = "auto"


def write_preferences(path: Path, verdict: Mapping[str, Any]) -> None:
    """Write a `NAME.preferences.json`, atomically.

    `verdict` is that of :func:`newllm.train.prefer.judge_preferences`, with the share of refusals
    before and after, and how the run learnt.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    _write(path, _PREFERENCES, verdict)


def read_preferences(path: Path) -> dict[str, Any]:
    """The verdict that :func:`write_preferences` wrote.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    try:
        return _read(path, _PREFERENCES)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a verdict that can be read ({error})") from None


def write_practice(
    path: Path, plan: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> None:
    """Write a `NAME.practice.json`, atomically: plan and rounds as `practise` returns them.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    _write(path, _PRACTICE, {"plan": plan, "rounds": rounds})


def read_practice(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plan and rounds that :func:`write_practice` wrote.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    try:
        content = _read(path, _PRACTICE)
        plan, rounds = content["plan"], content["rounds"]
        if not isinstance(plan, dict) or not isinstance(rounds, list):
            raise TypeError("expected a plan and rounds")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; give another --name") from None
    return plan, rounds


def _write(path: Path, name: str, content: Mapping[str, Any]) -> None:
    content = {"format": name, "version": VERSION, **content}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path, name: str) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError("expected an object")
    kind = (content.pop("format", name), content.pop("version", VERSION))
    if kind != (name, VERSION):
        raise ValueError(f"{kind[0]} version {kind[1]}, expected {name} version {VERSION}")
    return content
