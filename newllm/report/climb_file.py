"""`climb.json`, what `newllm climb` leaves, as the forgetting matrix and what goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.errors import UserError
from newllm.evaluate.forgetting import Matrix, backward_transfer, forgetting_matrix

NAME, FORMAT, VERSION = "climb.json", "new-llm climb", 1


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
        return Climb(
            levels, content.get("rehearsal_share"), results, matrix, backward_transfer(matrix)
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a climb that can be read ({error!r})") from None
