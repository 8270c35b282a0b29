"""`newllm progress` in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.report.progress import Progress, Row
from newllm.results.climb import Climb
from newllm.results.summary import bpb_mark_line, mark_line

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
    if climb.backward_transfer is not None:
        how = "better" if climb.backward_transfer > 0 else "worse"
        lines.append(
            f"Backward transfer {climb.backward_transfer:+.4f} bits per byte: earlier levels are "
            f"{how} at the end than right after they were learned."
        )
    if climb.next is not None:
        lines.append(f"Next, {climb.next.text}:\n  {climb.next.command}")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first row is the head; columns of numbers stand right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [
        any(cell[:1].isdigit() or cell[:1] in "+-<" for cell in column[1:] if cell)
        for column in zip(*rows, strict=True)
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


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
