"""`newllm progress --html`: one self-contained page, drawn once in each language.

Everything that comes from files is escaped by the template engine, and the page's policy lets no
script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

import newllm
from newllm.report.charts import ENVIRONMENT, TEMPLATES, Chart, Line, Threshold, draw
from newllm.report.page_text import Translator
from newllm.report.progress import Progress, Row, Status
from newllm.report.text import NOTHING, count, fixed, percent, signed
from newllm.results.climb import Climb
from newllm.results.records import AnswersRecord, score
from newllm.results.runs import Run
from newllm.results.verdict import NextStep

ICONS: dict[Status, str] = {
    "cleared": "✓",
    "trained, not cleared": "✗",
    "trained, not judged": "●",
    "training": "▸",
    "ready": "→",
    "planned": "○",
}
"""The best status first."""

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Talk:
    """One prompt with the answers of some epochs."""

    prompt: str
    answers: Sequence[tuple[int, str]]


def style_of(status: Status) -> str:
    """The status as a class of `page.css`."""
    return status.removeprefix("trained, ").replace(" ", "-")


def pick_answers(lines: Sequence[AnswersRecord]) -> list[Talk]:
    """Each prompt's answers after the first, a middle and the last epoch."""
    chosen = [lines[i] for i in sorted({0, (len(lines) - 1) // 2, len(lines) - 1})] if lines else []
    prompts = [answer["prompt"] for answer in chosen[-1]["answers"]] if chosen else []
    return [
        Talk(
            prompt,
            [
                (line["epoch"], answer["answer"])
                for line in chosen
                for answer in line["answers"]
                if answer["prompt"] == prompt
            ],
        )
        for prompt in prompts
    ]


def _sentences(run: Run, t: Translator) -> list[str]:
    summary = run.summary
    if summary is None:
        return [
            t("It is still being trained, or was stopped; the command goes on where it stands.")
        ]
    verdict, baseline = summary.verdict, summary.ngram_baseline
    band = t(verdict.band) if verdict.band else ""
    mark = "" if verdict.mark is None else f"{verdict.mark:g}"
    ppl, margin = fixed(summary.best["ppl"], 2), signed(verdict.margin, 2)
    sentences = [t(verdict.reason, ppl=ppl, mark=mark, margin=margin, band=band)]
    bpb_mark = verdict.bpb_mark
    if bpb_mark is not None:
        how = "cleared, below" if bpb_mark.cleared else "not cleared, not below"
        text = f"In bits per byte: {how} {{mark}} ({{how}})."
        sentences.append(t(text, mark=fixed(bpb_mark.bpb, 4), how=bpb_mark.how))
    value = f"PPL {fixed(baseline.ppl, 2)}"
    if baseline.bpb is not None:
        value = t("{value} bits/byte", value=fixed(baseline.bpb, 3))
    side = "ahead" if baseline.beaten else "behind"
    text = "A {n}-gram table, which only counts, reaches {value} on the same rows: the model is "
    return [*sentences, t(f"{text}{side}.", n=baseline.order, value=value)]


def _tiles(row: Row, run: Run, t: Translator) -> Pairs:
    best, summary = run.best, run.summary
    if best is None:
        return []
    bpe = row.tokenizer == "bpe"
    digits = 3 if bpe else 2
    tiles = [(t("bits/byte"), fixed(best["bpb"], 3))] if bpe else []
    tiles += [("PPL", fixed(best["ppl"], 2)), (t("accuracy"), percent(best["accuracy"]))]
    if bpe and best["bpb_assistant"] is not None:  # plain text has no assistant
        tiles.append((t("bits/byte, assistant"), fixed(best["bpb_assistant"], 3)))
    if not bpe:
        tiles.append((t("unknown words"), percent(best["unk_share"])))
    if summary is None:
        return tiles
    baseline = summary.ngram_baseline
    counted = baseline.bpb if bpe else baseline.ppl
    tiles.append((t("{n}-gram table", n=baseline.order), fixed(counted, digits)))
    if row.mark is not None:
        tiles.append((t("mark"), f"< {row.mark:.3f}" if bpe else f"< {row.mark:g}"))
    if row.margin is not None:
        tiles.append((t("margin"), signed(row.margin, digits)))
    megabytes = summary.counts_bytes / 1e6
    counts = [(t("counts, MB"), fixed(megabytes, 1))] if megabytes else []
    return [
        *tiles,
        (t("parameters"), count(summary.parameters)),
        *counts,
        (t("minutes"), fixed(summary.minutes, 1)),
    ]


def _curve(row: Row, run: Run, t: Translator) -> tuple[str | None, str]:
    """The validation curve with n-gram baseline and mark, and its caption."""
    bpe = row.tokenizer == "bpe"
    key, digits = ("bpb", 3) if bpe else ("ppl", 2)
    measure = t("bits/byte") if bpe else "PPL"
    points = [(r["epoch"], score(r, key)) for r in run.history if r[key] is not None]
    best = run.best
    if not points or best is None:
        return None, ""
    thresholds = []
    if run.summary is not None:
        baseline = run.summary.ngram_baseline
        counted = baseline.bpb if bpe else baseline.ppl
        if counted is not None:
            name = t("{n}-gram table", n=baseline.order)
            thresholds = [Threshold(f"{name} {fixed(counted, digits)}", counted, "floor")]
        judged = bpe or run.summary.verdict.status != "not judged"
        if row.mark is not None and judged:
            text = f"{t('mark')} < {row.mark:.3f}" if bpe else f"{t('mark')} < {row.mark:g}"
            thresholds.append(Threshold(text, row.mark, "mark"))
    caption = t(
        "Validation {measure} by epoch; best {best} after epoch {n}.",
        measure=measure,
        best=fixed(best[key], digits),
        n=best["epoch"],
    )
    every = max(1, -(-len(points) // 10))
    chart = Chart(
        title=f"{t('Validation after each epoch')}: {run.name}",
        description=caption,
        x_label=t("epoch"),
        y_label=measure,
        x_ticks=[(x, str(x)) for x, _ in points[::every]],
        lines=[Line(run.name, points)],
        thresholds=thresholds,
        highlight=(best["epoch"], score(best, key)),
        digits=digits,
    )
    return draw(chart, f"{t.language}-{run.name}"), caption


def _facts(run: Run, t: Translator) -> dict[str, Mapping[str, Any]]:
    """Names stay as they are in the files, so that they can be found there."""
    settings: dict[str, Mapping[str, Any]] = {t("Settings"): run.settings.model_dump()}
    if run.summary is None:
        return settings
    data, machine = dict(run.summary.data), dict(run.summary.machine)
    accounting = data.pop("accounting")
    if machine.get("memory"):
        machine["memory"] = f"{machine['memory'] / 2**30:.1f} GiB"
    return {
        t("Data"): data,
        t("Training rows"): accounting["train"],
        t("Validation rows"): accounting["validation"],
        t("Machine"): machine,
        t("Versions"): {**run.summary.versions, "written": run.summary.created},
        **settings,
    }


def show_value(value: Any) -> str:
    """A stored value as text."""
    if value is None or value == []:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(show_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {show_value(part)}" for name, part in value.items())
    return str(value)


@dataclass(frozen=True)
class View:
    """The page in one language."""

    t: Translator
    levels: Sequence[Sequence[Row]]
    """The rows of each level."""
    next: NextStep | None
    climb: Climb | None


def progress_page(progress: Progress) -> str:
    """The page as HTML."""
    environment = ENVIRONMENT.overlay()
    environment.filters = environment.filters | {
        "fixed": fixed,
        "signed": signed,
        "percent": percent,
        "number": count,
        "value": show_value,
        "style": style_of,
        "icon": ICONS.__getitem__,
    }
    script = _part("page.js")
    return environment.get_template("page.html").render(
        views=[view(progress, Translator("en")), view(progress, Translator("ja"))],
        progress=progress,
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=newllm.__version__,
        style=Markup(_part("chart.css") + _part("page.css")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sentences_of=_sentences,
        tiles_of=_tiles,
        curve_of=_curve,
        facts_of=_facts,
        pick_answers=pick_answers,
        best_status=_best_status,
        score_of=_score,
        forgotten=_forgotten,
    )


def view(progress: Progress, t: Translator) -> View:
    """Everything the page shows, in one language."""
    rows = [*progress.rows, *progress.beside]
    names = dict.fromkeys(row.level.name for row in rows)
    levels = [[row for row in rows if row.level.name == name] for name in names]
    return View(t, levels, choose_next(progress, t), progress.climb)


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


def _best_status(rows: Sequence[Row]) -> Status:
    return min((row.status for row in rows), key=list(ICONS).index)


def _score(row: Row, run: Run, t: Translator) -> str:
    """What the level's step says of a run."""
    best = run.best
    if best is None:
        return ""
    if row.tokenizer == "bpe":
        return t("{value} bits/byte", value=fixed(best["bpb"], 3))
    return f"PPL {fixed(best['ppl'], 2)}"


def _forgotten(climb: Climb, after: int, level: int) -> tuple[float | None, str]:
    """The change of a level's score since it was learned, and its style.

    Shaded by the relative change: from 0.5%, 3% and 10%.
    """
    score, learned = climb.matrix[after][level], climb.matrix[level][level]
    if after == level:
        return None, "learned"
    if after < level or score is None or learned is None:
        return None, ""
    change = score - learned
    strength = sum(abs(change) / learned >= bound for bound in (0.005, 0.03, 0.1))
    style = f"{'better' if change < 0 else 'worse'}-{strength}" if strength else ""
    return change, style


def _part(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
