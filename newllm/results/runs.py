"""A run on disk: the names of its files, and the runs of a folder read from them."""

from __future__ import annotations

import glob
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config import Settings, parse, read_yaml
from newllm.errors import UserError
from newllm.files import previous_path, write_text
from newllm.results.records import AnswersRecord, EpochRecord, score
from newllm.results.summary import Summary, load_summary


class RunFiles:
    """Every file of a run, by the run's name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.best = folder / f"best_{name}.pt"
        self.final = folder / f"{name}_final.pt"
        self.resume = folder / f"{name}_resume.pt"
        self.metrics = folder / f"{name}.metrics.jsonl"
        self.answers = folder / f"{name}.answers.jsonl"
        self.settings = folder / f"{name}.yaml"
        self.summary = folder / f"{name}.summary.json"
        self.preferences = folder / f"{name}.preferences.json"
        """The verdict of `newllm prefer`."""
        self.curves = folder / "tensorboard" / name
        """Folder of TensorBoard's files."""

    def existing(self) -> list[Path]:
        """Those files that are there, the resume file's predecessor included."""
        files = (
            self.best, self.final, self.resume, previous_path(self.resume), self.metrics,
            self.answers, self.settings, self.summary, self.preferences, self.curves,
        )  # fmt: skip
        parts = sorted(self.folder.glob(f"{glob.escape(self.resume.stem)}.parts-*"))
        return [*(path for path in files if path.exists()), *parts]


def set_aside(files: RunFiles, note: Callable[[str], None]) -> None:
    """Move an earlier run of the same name out of the way, rather than over-writing it."""
    existing = files.existing()
    if not existing:
        return
    name = f"{files.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = files.folder / "replaced" / name, 1
    while folder.exists():
        folder, number = folder.with_name(f"{name}-{number}"), number + 1
    folder.mkdir(parents=True)
    for path in existing:
        path.rename(folder / path.name)
    note(f"An earlier run of this name was moved to {folder} (--resume would have gone on)")


@dataclass(frozen=True)
class Run:
    """One run: finished (it has a summary), running or stopped."""

    files: RunFiles
    settings: Settings
    history: list[EpochRecord]
    """One record an epoch (`NAME.metrics.jsonl`)."""
    answers: list[AnswersRecord]
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
    def best(self) -> EpochRecord | None:
        """The record of the best epoch so far."""
        if self.summary is not None:
            return self.summary.best
        best = [record for record in self.history if record["best"]]
        return best[-1] if best else None

    @property
    def score(self) -> float:
        """Perplexity (word1000) or bits per byte (bpe) of the best epoch; infinite without one."""
        measure = "ppl" if self.settings.tokenizer == "word1000" else "bpb"
        return math.inf if self.best is None else score(self.best, measure)


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
            continue  # a settings file without a run
        try:
            runs.append(_read_run(files))
        except UserError as error:
            notes.append(f"left out: {error}")
    return runs, notes


def _read_run(files: RunFiles) -> Run:
    return Run(
        files=files,
        settings=parse(read_yaml(files.settings), {}),
        history=read_lines(files.metrics, {"epoch", "ppl", "accuracy", "bpb", "best"}),
        answers=read_answers(files),
        summary=load_summary(files.summary) if files.summary.exists() else None,
    )


def read_answers(files: RunFiles) -> list[AnswersRecord]:
    """The answers of a run's epochs so far.

    Raises:
        UserError: the file is damaged.
    """
    return read_lines(files.answers, {"epoch", "answers"})


def read_lines(path: Path, needed: set[str]) -> list[Any]:
    """Records of JSON lines; none where there is no file yet.

    Raises:
        UserError: a line is no JSON, or a record without one of the keys `needed`.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8") as lines:  # not `splitlines`: an answer may hold a U+2028
            records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON lines ({error})") from None
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not needed <= set(record):
            raise UserError(f"{path}, line {number}: expected {', '.join(sorted(needed))}")
    return records


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines, atomically."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(path, "".join(lines))
