"""What a finished run leaves to be read: `NAME.summary.json`, and the lines that say the same.

What is printed is what is stored: the lines at the end of a training are made from the summary.
Reading one needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from newllm.errors import UserError
from newllm.files import write_text
from newllm.results.marks import BpbVerdict
from newllm.results.records import ComparedBaseline, EpochRecord, without_counts
from newllm.results.verdict import NextStep, Verdict, chat_command

FORMAT, VERSION = "new-llm summary", 1


@dataclass(frozen=True)
class Summary:
    """One finished run."""

    run: str
    dataset: str
    level: int | None
    """Number of the level; None for a data set beside the levels."""
    settings: Mapping[str, Any]
    parameters: int
    data: Mapping[str, Any]
    """fingerprint, source, revision, accounting of each split, vocab_size."""
    best: EpochRecord
    """The record of the best epoch, as in `NAME.metrics.jsonl`."""
    epochs: int
    """Epochs trained."""
    minutes: float
    """Spent in training steps, over all sessions."""
    trained_tokens: int
    ngram_baseline: ComparedBaseline
    """The n-gram table on the same rows (`floor` in the file)."""
    verdict: Verdict
    advice: tuple[NextStep, ...]
    checkpoint: str
    """Path of the best epoch's checkpoint, as the run wrote it."""
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    """cpu, cores, memory (bytes), device, kernel, precision, threads."""
    created: str
    counts_bytes: int = 0
    """Size of the model's table of counts, beside the parameters; 0 for none."""

    def to_dict(self) -> dict[str, Any]:
        """As in the file, without its format and version."""
        names = {"ngram_baseline": "floor"}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def save_summary(path: Path, summary: Summary) -> None:
    """Write the file, atomically.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    content = {"format": FORMAT, "version": VERSION, **summary.to_dict()}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_summary(path: Path) -> Summary:
    """Read the file.

    Raises:
        UserError: it is damaged, or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = (content.pop("format"), content.pop("version"))
        if kind != (FORMAT, VERSION):
            raise ValueError(f"{kind[0]} version {kind[1]}, expected {FORMAT} version {VERSION}")
        verdict = content.pop("verdict")
        mark = verdict.pop("bpb_mark", None)
        parts = {
            "ngram_baseline": ComparedBaseline(**content.pop("floor")),
            "verdict": Verdict(**verdict, bpb_mark=None if mark is None else BpbVerdict(**mark)),
            "advice": tuple(NextStep(**step) for step in content.pop("advice")),
        }
        return Summary(**content, **parts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a summary that can be read ({error}); "
            "the run's command with --resume writes it anew"
        ) from None


def summary_lines(summary: Summary, advise: bool = True) -> list[str]:
    """Lines for the screen: result, n-gram baseline, mark; advice and the next command."""
    done = f"{summary.epochs} epochs, {summary.minutes:.1f} minutes of training"
    lines = [
        f"Finished: {done}, {summary.trained_tokens:,} tokens",
        _result(summary.best),
        _baseline(summary.ngram_baseline),
        mark_line(summary),
    ]
    alone = without_counts(summary.best)
    if alone is not None:
        lines.insert(2, f"Without its {summary.counts_bytes / 1e6:.1f} MB of counts: {alone}")
    if summary.verdict.bpb_mark is not None:
        lines.append(bpb_mark_line(summary.verdict.bpb_mark))
    if not advise:
        return lines
    for step in summary.advice:
        lines.append(f"Next, {step.text}:\n  {step.command}")
    architecture = summary.settings.get("architecture", "")
    lines.append(f"Talk to it:\n  {chat_command(summary.checkpoint, architecture)}")
    return lines


def _result(best: EpochRecord) -> str:
    line = f"Best epoch {best['epoch']}: validation PPL {best['ppl']:.2f}, "
    line += f"accuracy {best['accuracy']:.1%}"
    if best["bpb"] is None:
        return line + f"; {best['unk_share']:.1%} of the scored tokens are unknown words"
    line += f", {best['bpb']:.4f} bits per byte"
    if best["bpb_assistant"] is None:
        return line
    return line + f" ({best['bpb_assistant']:.4f} of the assistant's text)"


def _baseline(table: ComparedBaseline) -> str:
    in_bytes = table.bpb is not None
    reached = f"{table.bpb:.4f} bits per byte" if in_bytes else f"PPL {table.ppl:.2f}"
    how = "ahead of it" if table.beaten else "behind it"
    return f"A {table.order}-gram table reaches {reached} on the same rows: this model is {how}."


def mark_line(summary: Summary) -> str:
    """The verdict by the published mark."""
    verdict = summary.verdict
    if verdict.mark is None:
        return f"{summary.dataset} has no pass mark."
    name = f"Level {summary.level} ({summary.dataset})"
    if verdict.status != "not judged":
        line = (
            f"{name}: {verdict.status.upper()}, PPL {summary.best['ppl']:.2f} against "
            f"< {verdict.mark:g} (margin {verdict.margin:+.2f}, band: {verdict.band})"
        )
        if verdict.reason == "below a guessed mark":
            line += ". This mark was a guess, which a table of counts passes: see bits per byte."
        return line
    if verdict.reason == "another unit":
        return (
            f"{name}: the published mark (PPL < {verdict.mark:g}) is in word-1000 units; "
            "to be judged by it, train with --tokenizer word1000."
        )
    why = {
        "built-in rows": "these are the built-in rows, not the data set's",
        "vocabulary of another run": "the vocabulary came with --from, and the protocol counts it "
        "on this level's own rows",
    }[verdict.reason]
    return f"{name}: the mark (PPL < {verdict.mark:g}) is not judged: {why}."


def bpb_mark_line(mark: BpbVerdict) -> str:
    """The verdict by the mark in bits per byte."""
    word = "CLEARED" if mark.cleared else "NOT CLEARED"
    return (
        f"In bits per byte: {word}, against {mark.bpb:.4f} ({mark.how}, "
        f"{mark.parameters:,} parameters, {mark.minutes:g} minutes)"
    )
