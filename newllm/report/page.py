"""`newllm progress --html`: one self-contained page, drawn once in each language.

Everything that comes from files is escaped by the template engine, and the page's policy lets no
script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

import newllm
from newllm.datasets.base import Dataset
from newllm.report.charts import TEMPLATES
from newllm.report.numbers import fixed, percent, signed
from newllm.report.page_run import ICONS, STYLES, RunView, show_value, view_run
from newllm.report.page_text import Language, Translator
from newllm.report.progress import Progress, Row, Status
from newllm.results.climb import Climb
from newllm.results.verdict import NextStep

_BEST_FIRST: tuple[Status, ...] = (
    "cleared",
    "trained, not cleared",
    "trained, not judged",
    "training",
    "ready",
    "planned",
)


@dataclass(frozen=True)
class Step:
    """A level as a step of the staircase."""

    level: Dataset
    status: Status
    style: str
    icon: str
    scores: Sequence[str]
    has_run: bool


@dataclass(frozen=True)
class Group:
    """A level with its runs."""

    level: Dataset
    runs: Sequence[RunView]


@dataclass(frozen=True)
class Cell:
    """One number of the forgetting matrix."""

    score: float | None
    change: float | None
    """Since the level was learned; None on the diagonal."""
    style: str


@dataclass(frozen=True)
class MatrixRow:
    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Stage:
    """One level of a climb."""

    name: str
    run: str
    grown: str
    minutes: float | None
    skills: str


@dataclass(frozen=True)
class ClimbView:
    """The climb in words of one language."""

    names: Sequence[str]
    rows: Sequence[MatrixRow]
    transfer: str | None
    stages: Sequence[Stage]


@dataclass(frozen=True)
class View:
    """The page in one language."""

    t: Translator
    steps: Sequence[Step]
    next: NextStep | None
    groups: Sequence[Group]
    waiting: Sequence[Row]
    climb: ClimbView | None

    @property
    def language(self) -> Language:
        return self.t.language


def progress_page(progress: Progress) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"fixed": fixed, "signed": signed, "percent": percent}
    script = _part("page.js")
    return environment.get_template("page.html").render(
        views=[view(progress, Translator("en")), view(progress, Translator("ja"))],
        progress=progress,
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=newllm.__version__,
        style=Markup(_part("chart.css") + _part("page.css")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def view(progress: Progress, t: Translator) -> View:
    """Everything the page shows, in one language."""
    rows = [*progress.rows, *progress.beside]
    levels = list(dict.fromkeys(row.level.name for row in rows))
    by_level = {name: [row for row in rows if row.level.name == name] for name in levels}
    groups = [
        Group(found[0].level, [view_run(row, row.run, t) for row in found if row.run is not None])
        for found in by_level.values()
        if found[0].run is not None
    ]
    return View(
        t=t,
        steps=[_step(found, t) for found in by_level.values() if found[0].level.number],
        next=choose_next(progress, t),
        groups=groups,
        waiting=[row for row in progress.rows if row.run is None],
        climb=_climb(progress.climb, t) if progress.climb else None,
    )


def choose_next(progress: Progress, t: Translator) -> NextStep | None:
    """The one thing to do next: what a climb asks for, else finish what was begun, else the
    advice of the highest level reached, else the first level that is ready."""
    rows = progress.rows
    if progress.climb is not None and progress.climb.next is not None:
        step = progress.climb.next
        return NextStep(t.advice(step.text), step.command, step.dataset)
    for row in rows:
        if row.status == "training" and row.run is not None and row.next_command is not None:
            text = t("Go on with {name}", name=t.level_name(row.level))
            return NextStep(text, row.next_command, row.level.name)
    for row in reversed(rows):
        if row.advice:
            step = row.advice[0]
            text = f"{t.level_name(row.level)}: {t.advice(step.text)}"
            return NextStep(text, step.command, step.dataset)
    for row in rows:
        if row.status == "ready" and row.next_command is not None:
            text = t("Train {name}", name=t.level_name(row.level))
            return NextStep(text, row.next_command, row.level.name)
    return None


def _step(rows: Sequence[Row], t: Translator) -> Step:
    status = min(rows, key=lambda row: _BEST_FIRST.index(row.status)).status
    scores = []
    for row in rows:
        best = row.run.best if row.run is not None else None
        if best is not None:
            bpe = row.tokenizer == "bpe"
            bits = t("{value} bits/byte", value=fixed(best["bpb"], 3))
            scores.append(bits if bpe else f"PPL {fixed(best['ppl'], 2)}")
    has_run = any(row.run is not None for row in rows)
    return Step(rows[0].level, status, STYLES[status], ICONS[status], scores, has_run)


def _climb(climb: Climb, t: Translator) -> ClimbView:
    names = [result["dataset"] for result in climb.results]
    rows = [
        MatrixRow(
            name,
            [
                _cell(score, climb.matrix[j][j] if j < i else None, learned=i == j)
                for j, score in enumerate(scores)
            ],
        )
        for i, (name, scores) in enumerate(zip(names, climb.matrix, strict=True))
    ]
    transfer = None
    if climb.backward_transfer is not None:
        gained = climb.backward_transfer >= 0
        how = "earlier levels got better" if gained else "earlier levels were partly forgotten"
        text = f"Backward transfer {{value}} bits per byte: {how}."
        transfer = t(text, value=signed(climb.backward_transfer, 4))
    stages = [
        Stage(
            name=result["dataset"],
            run=result["run"],
            grown=", ".join(
                f"{setting} {before} → {after}"
                for setting, (before, after) in (result.get("grown") or {}).items()
            ),
            minutes=result.get("minutes"),
            skills=show_value(result["skills"]) if result.get("skills") else "",
        )
        for result in climb.results
    ]
    return ClimbView(names, rows, transfer, stages)


def _cell(score: float | None, learned_at: float | None, learned: bool) -> Cell:
    """Shaded by the relative change since the level was learned: from 0.5%, 3% and 10%."""
    if score is None or learned_at is None:
        return Cell(score, None, "learned" if learned else "")
    change = score - learned_at
    strength = sum(abs(change) / learned_at >= bound for bound in (0.005, 0.03, 0.1))
    style = f"{'better' if change < 0 else 'worse'}-{strength}" if strength else ""
    return Cell(score, change, style)


def _part(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
