"""The runs of a folder, read from what they left there; no torch is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config import Settings, parse, read_yaml
from newllm.errors import UserError
from newllm.results.run_files import RunFiles
from newllm.results.summary import Summary, load_summary

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: finished (it has a summary), running or stopped."""

    files: RunFiles
    settings: Settings
    history: list[Record]
    """One record an epoch (`NAME.metrics.jsonl`)."""
    answers: list[Record]
    """The fixed prompts' answers, one line an epoch (`NAME.answers.jsonl`)."""
    summary: Summary | None

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def epoch(self) -> int:
        """The epoch it is in, from 1; the last one when it is finished."""
        done = self.history[-1]["epoch"] if self.history else 0
        return done if self.summary else min(done + 1, self.settings.epochs)

    @property
    def best(self) -> Record | None:
        """The record of the best epoch so far."""
        if self.summary is not None:
            return self.summary.best
        best = [record for record in self.history if record["best"]]
        return best[-1] if best else None

    @property
    def score(self) -> float:
        """Perplexity (word1000) or bits per byte (bpe) of the best epoch; infinite without one."""
        measure = "ppl" if self.settings.tokenizer == "word1000" else "bpb"
        score = self.best[measure] if self.best is not None else None
        return float("inf") if score is None else score


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Every run of a folder, by name, and a line for each that cannot be read.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"--out {folder}: no such folder; train first (newllm train dolly), "
            "or name the folder of your runs"
        )
    runs, notes = [], []
    for settings_file in sorted(folder.glob("*.yaml")):
        files = RunFiles(folder, settings_file.stem)
        if not (files.metrics.exists() or files.summary.exists()):
            continue  # somebody's own settings file
        try:
            runs.append(_read_run(files))
        except UserError as error:
            notes.append(f"left out: {error}")
    return runs, notes


def _read_run(files: RunFiles) -> Run:
    return Run(
        files=files,
        settings=parse(read_yaml(files.settings), {}),
        history=_read_lines(files.metrics, {"epoch", "ppl", "accuracy", "bpb", "best"}),
        answers=_read_lines(files.answers, {"epoch", "answers"}),
        summary=load_summary(files.summary) if files.summary.exists() else None,
    )


def _read_lines(path: Path, needed: set[str]) -> list[Record]:
    """Records of JSON lines; none where there is no file yet."""
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON lines ({error})") from None
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not needed <= set(record):
            raise UserError(f"{path}, line {number}: expected {', '.join(sorted(needed))}")
    return records
