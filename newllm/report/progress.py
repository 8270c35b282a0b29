"""Where one stands: every level with its best run by protocol, its verdict and what to do next;
`newllm progress` in the terminal.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from newllm.datasets import DATASETS
from newllm.datasets.base import Dataset
from newllm.errors import UserError
from newllm.report.text import aligned
from newllm.results.climb import Climb, read_climb
from newllm.results.runs import Run, read_runs
from newllm.results.summary import bpb_mark_line, mark_line
from newllm.results.verdict import NextStep, Verdict, chat_command, train_command

Status = Literal[
    "cleared", "trained, not cleared", "trained, not judged", "training", "ready", "planned"
]

_OF_OUTCOME: dict[str, Status] = {
    "cleared": "cleared",
    "not cleared": "trained, not cleared",
    "not judged": "trained, not judged",
}

PROTOCOLS = ("word1000", "bpe")


@dataclass(frozen=True)
class Row:
    """A level in one protocol: its best run there, or none yet."""

    level: Dataset
    status: Status
    tokenizer: str | None
    """The protocol; None for a level without a run."""
    run: Run | None
    others: tuple[str, ...]
    """Further runs in this protocol."""
    advice: tuple[NextStep, ...]
    next_command: str | None
    """Ready to paste; None for a planned level."""

    @property
    def verdict(self) -> Verdict | None:
        """That of a finished run."""
        return self.run.summary.verdict if self.run and self.run.summary else None

    @property
    def mark(self) -> float | None:
        """What has to be undercut in this protocol: PPL (word1000) or bits per byte (bpe)."""
        if self.tokenizer == "word1000":
            return self.level.pass_mark
        bpb_mark = self.verdict.bpb_mark if self.verdict else None
        return bpb_mark.bpb if bpb_mark else None

    @property
    def margin(self) -> float | None:
        """Mark minus result; None where the mark is not judged."""
        if self.tokenizer == "word1000":
            return self.verdict.margin if self.verdict else None
        bpb = self.run.best["bpb"] if self.run and self.run.best else None
        return None if self.mark is None or bpb is None else self.mark - bpb

    def facts(self) -> dict[str, Any]:
        """The row as plain values."""
        run = self.run
        best: Mapping[str, Any] = (run.best if run else None) or {}
        return {
            "level": self.level.number,
            "dataset": self.level.name,
            "title": self.level.title,
            "tokenizer": self.tokenizer,
            "status": self.status,
            "run": run.name if run else None,
            "other_runs": list(self.others),
            "epoch": run.epoch if run else None,
            **{name: best.get(name) for name in ("ppl", "accuracy", "bpb", "bpb_assistant")},
            "mark": self.mark,
            "margin": self.margin,
            "verdict": asdict(self.verdict) if self.verdict else None,
            "advice": [asdict(step) for step in self.advice],
            "next_command": self.next_command,
            "summary": run.summary.to_dict() if run and run.summary else None,
            "history": run.history if run else [],
        }


@dataclass(frozen=True)
class Progress:
    """Everything the table, the JSON and the page show."""

    folder: Path
    rows: tuple[Row, ...]
    """The five levels, those with runs in both protocols twice; before them plain text, if any."""
    beside: tuple[Row, ...]
    """Runs on data sets beside the levels."""
    climb: Climb | None
    notes: tuple[str, ...]
    """What could not be read."""

    def facts(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "folder": str(self.folder),
            "levels": [row.facts() for row in self.rows],
            "beside": [row.facts() for row in self.beside],
            "climb": asdict(self.climb) if self.climb else None,
            "notes": list(self.notes),
        }


def read_progress(folder: Path) -> Progress:
    """Collect the runs of a folder and choose the best by level and protocol.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    runs, notes = read_runs(folder)
    if not runs:
        reasons = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"--out {folder}: no run there{reasons}; train first: "
            f"{train_command('dolly', 'bpe', str(folder))}"
        )
    climb = None
    try:
        climb = read_climb(folder)
    except UserError as error:
        notes.append(f"left out: {error}")
    steps = _steps_of_climb(climb, runs) if climb else {}
    trained = {(run.settings.dataset, run.settings.tokenizer) for run in runs if run.summary}
    rows = [
        row
        for level in DATASETS.values()
        if level.number is not None
        for row in _rows(level, runs, trained, steps)
        or ([_without_run(level, trained, folder)] if level.number else [])
    ]
    beside = [
        row
        for level in DATASETS.values()
        if level.number is None
        for row in _rows(level, runs, trained, steps)
    ]
    return Progress(folder, tuple(rows), tuple(beside), climb, tuple(notes))


def leads_to(dataset: str) -> list[str]:
    """The data sets whose advice names this one: its predecessors."""
    return [
        level.name
        for level in DATASETS.values()
        if any(step.level == dataset for steps in level.advice.values() for step in steps)
    ]


def _steps_of_climb(climb: Climb, runs: Iterable[Run]) -> dict[str, tuple[NextStep, ...]]:
    """Run of a climb -> what to do next: that is for the climb to say, not for the run alone."""
    at = (climb.current, "bpe")
    here = (climb.next,) if climb.next else ()
    going = [run for run in runs if (run.settings.dataset, run.settings.tokenizer) == at]
    return {run.name: here for run in going} | dict.fromkeys(climb.runs, ())


def _rows(
    level: Dataset,
    runs: Iterable[Run],
    trained: set[tuple[str, str]],
    steps: Mapping[str, tuple[NextStep, ...]],
) -> list[Row]:
    """A row for each protocol that has a run of this level."""
    rows = []
    for tokenizer in PROTOCOLS:
        found = [
            run
            for run in runs
            if (run.settings.dataset, run.settings.tokenizer) == (level.name, tokenizer)
        ]
        if found:
            best = min(found, key=_rank)
            others = tuple(run.name for run in found if run is not best)
            rows.append(_row_of(level, best, others, trained, steps.get(best.name)))
    return rows


def _rank(run: Run) -> tuple[Any, ...]:
    """Finished runs first; real rows before built-in ones, all rows before a part; then by score.

    Scores on different rows do not compare, so the rows count first.
    """
    settings = run.settings
    return (run.summary is None, settings.data == "sample", settings.subset != "all", run.score)


def _row_of(
    level: Dataset,
    run: Run,
    others: tuple[str, ...],
    trained: set[tuple[str, str]],
    advice: tuple[NextStep, ...] | None,
) -> Row:
    tokenizer = run.settings.tokenizer
    if run.summary is None:
        command = advice[0].command if advice else _resume_command(run)
        return Row(level, "training", tokenizer, run, others, (), command)
    if advice is None:
        # Advice to go on to a level that has been trained since is no longer news.
        advice = tuple(
            step
            for step in run.summary.advice
            if step.dataset == level.name or (step.dataset, tokenizer) not in trained
        )
    talk = chat_command(str(run.files.best), run.settings.architecture)
    command = advice[0].command if advice else talk
    status = _OF_OUTCOME[run.summary.verdict.outcome]
    return Row(level, status, tokenizer, run, others, advice, command)


def _without_run(level: Dataset, trained: set[tuple[str, str]], folder: Path) -> Row:
    before = leads_to(level.name)
    protocols = [tokenizer for dataset, tokenizer in sorted(trained) if dataset in before]
    if before and not protocols:
        return Row(level, "planned", None, None, (), (), None)
    tokenizer = "bpe" if not before or "bpe" in protocols else "word1000"
    command = train_command(level.name, tokenizer, str(folder))
    return Row(level, "ready", None, None, (), (), command)


def _resume_command(run: Run) -> str:
    """Goes on with a run, wherever its folder has been moved to."""
    files = run.files
    words = ["newllm", "train", run.settings.dataset, "--config", str(files.settings)]
    return shlex.join([*words, "--out", str(files.folder), "--resume"])


_HEAD = ("level", "data set", "tokenizer", "status", "PPL", "accuracy", "bits/byte", "mark",
         "margin")  # fmt: skip


def progress_table(progress: Progress) -> str:
    """The levels as a table, then verdict, advice and next command of each, then the climb."""
    rows = [*progress.rows, *progress.beside]
    parts = [aligned([_HEAD, *(_cells(row) for row in rows)]), *(_details(row) for row in rows)]
    if progress.climb is not None:
        parts.append(climb_table(progress.climb))
    parts += progress.notes
    return "\n\n".join(part for part in parts if part)


def climb_table(climb: Climb) -> str:
    """The forgetting matrix in bits per byte."""
    learned = [result["dataset"] for result in climb.results]
    rows = [("bits per byte", *learned)]
    for name, scores in zip(learned, climb.matrix, strict=True):
        cells = ("" if score is None else f"{score:.3f}" for score in scores)
        rows.append((f"after {name}", *cells))
    lines = [aligned(rows)]
    for result in climb.results:
        if stage := result.get("preferred"):
            lines.append(
                f"Prefers the chosen answer of {stage['after']:.1%} of pairs after "
                f"{result['dataset']}; the longer one is chosen in {stage['longer']:.1%}"
            )
    if climb.backward_transfer is not None:
        how = "better" if climb.backward_transfer > 0 else "worse"
        lines.append(
            f"Backward transfer {climb.backward_transfer:+.4f} bits per byte: earlier levels are "
            f"{how} at the end than right after they were learned."
        )
    if climb.next is not None:
        lines.append(f"Next, {climb.next.text}:\n  {climb.next.command}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    best = row.run.best if row.run else None
    number = "" if row.level.number is None else str(row.level.number)
    status: str = row.status
    if row.status == "training" and row.run is not None:
        status = f"training, epoch {row.run.epoch} of {row.run.settings.epochs}"
    names = (number, row.level.name, row.tokenizer or "", status)
    bpe = row.tokenizer == "bpe"
    mark = row.mark if row.tokenizer else row.level.pass_mark
    last = (
        "" if mark is None else f"< {mark:.3f}" if bpe else f"< {mark:g}",
        "" if row.margin is None else f"{row.margin:+.3f}" if bpe else f"{row.margin:+.2f}",
    )
    if best is None:
        return (*names, "", "", "", *last)
    bpb = "" if best["bpb"] is None else f"{best['bpb']:.3f}"
    return (*names, f"{best['ppl']:.2f}", f"{best['accuracy']:.1%}", bpb, *last)


def _details(row: Row) -> str:
    if row.run is None:
        if row.next_command is None:
            return ""
        return f"{row.level.name}: ready\n  {row.next_command}"
    lines = [f"{row.level.name}, {row.tokenizer}: {row.run.name}"]
    summary = row.run.summary
    if summary is not None:
        lines.append(mark_line(summary))
        if summary.verdict.bpb_mark is not None:
            lines.append(bpb_mark_line(summary.verdict.bpb_mark))
    lines += [f"Next, {step.text}:\n  {step.command}" for step in row.advice]
    if not row.advice and row.next_command is not None:
        how = "Next, go on" if summary is None else "Talk to it"
        lines.append(f"{how}:\n  {row.next_command}")
    if row.others:
        lines.append(f"Other runs: {', '.join(row.others)}")
    return "\n".join(lines)
