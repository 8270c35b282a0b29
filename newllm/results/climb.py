"""`climb.json`, what `newllm climb` leaves, as the forgetting matrix and what goes with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config import option_name
from newllm.errors import UserError
from newllm.results.forgetting import Matrix, backward_transfer, forgetting_matrix
from newllm.results.verdict import NextStep

NAME, FORMAT, VERSION = "climb.json", "new-llm climb", 1
GO_ON, AGAIN = "go on with the climb", "the climb again, twice as long"


@dataclass(frozen=True)
class Climb:
    """One model's way through several levels."""

    levels: tuple[str, ...]
    rehearsal_share: float | None
    results: tuple[Mapping[str, Any], ...]
    """One a finished level: dataset, run, grown, minutes, evaluations, skills."""
    matrix: Matrix
    """Bits per byte: rows after a level, columns of a level."""
    backward_transfer: float | None
    """Bits per byte that earlier levels gained since they were learned; below 0: forgotten."""
    next: NextStep | None
    """Its next level; of a finished climb in which not every level was cleared, a longer one."""

    @property
    def runs(self) -> set[str]:
        """Names of the runs of its finished levels."""
        return {result["run"] for result in self.results}

    @property
    def current(self) -> str | None:
        """The level that it is at; None when it is finished."""
        left = self.levels[len(self.results) :]
        return left[0] if left else None


def read_climb(folder: Path) -> Climb | None:
    """The climb of a folder; None where there is none.

    Raises:
        UserError: the file is damaged or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = (content["format"], content["version"])
        if kind != (FORMAT, VERSION):
            raise ValueError(f"{kind[0]} version {kind[1]}, expected {FORMAT} version {VERSION}")
        levels, results = tuple(content["levels"]), tuple(content["results"])
        for result in results:
            if any(len(pair) != 2 for pair in (result.get("grown") or {}).values()):
                raise ValueError("grown: expected [before, after]")
        scores = [
            {name: found["bpb"] for name, found in result["evaluations"].items()}
            for result in results
        ]
        matrix = forgetting_matrix([result["dataset"] for result in results], scores)
        share, transfer = content.get("rehearsal_share"), backward_transfer(matrix)
        return Climb(levels, share, results, matrix, transfer, _next_step(content, folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a climb that can be read ({error!r})") from None


def _next_step(content: Mapping[str, Any], folder: Path) -> NextStep | None:
    levels, results = content["levels"], content["results"]
    if len(results) < len(levels):
        return NextStep(GO_ON, _command(content, str(folder), "--resume"), levels[len(results)])
    settings = content.get("settings", {})
    length = next((name for name in ("minutes", "epochs") if name in settings), None)
    if length is None or all(result.get("status") != "not cleared" for result in results):
        return None
    longer = {**content, "settings": {**settings, length: 2 * settings[length]}}
    return NextStep(AGAIN, _command(longer, f"{folder}_longer"), levels[0])


def _command(content: Mapping[str, Any], out: str, *flags: str) -> str:
    """The command line of a climb, ready to paste."""
    words = ["newllm", "climb", "--levels", *content["levels"]]
    words += ["--data-dir", content.get("data_dir", "hub"), "--out", out]
    for name, value in content.get("settings", {}).items():
        words += [option_name(name), f"{value:g}" if isinstance(value, float) else str(value)]
    if content.get("rehearsal_share") is not None:
        words += ["--rehearsal-share", f"{content['rehearsal_share']:g}"]
    given = ("until_cleared", "keep_going", "skills", "run_code")
    words += [option_name(name) for name in given if content.get(name)]
    return shlex.join([*words, *flags])
