"""The verdict on a training, as data: the mark in its own protocol, and what to do next.

What is said here is printed, stored in `NAME.summary.json` and shown by `newllm progress`; the
words around it are in `results/summary.py`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Literal

from newllm.config import DEFAULT_OUT, Settings, is_own_block, no_option_name, option_name
from newllm.datasets.base import Advice, Dataset
from newllm.results.marks import BpbVerdict
from newllm.results.records import EpochRecord, NgramBaseline
from newllm.settings import resolve

Status = Literal["cleared", "not cleared", "not judged"]

Reason = Literal[
    "below the mark",
    "below a guessed mark",
    "not below the mark",
    "no mark",
    "built-in rows",
    "vocabulary of another run",
    "another unit",
]

REAL_ROWS = "the real rows, from the Hub (or --data PATH)"


@dataclass(frozen=True)
class Verdict:
    """Whether a level is cleared, by which mark, and why (not)."""

    status: Status
    """By the published mark, a perplexity in the word-1000 protocol."""
    reason: Reason
    mark: float | None
    """The published mark: cleared below it. None where the data set has none."""
    margin: float | None = None
    """Mark minus perplexity; None where it is not judged."""
    band: str | None = None
    """excellent, cleared or needs work; None where it is not judged."""
    bpb_mark: BpbVerdict | None = None
    """The verdict by the mark in bits per byte, measured in equal time on the same rows; None where
    there is none."""

    @property
    def outcome(self) -> Status:
        """By the published mark, else by the mark in bits per byte."""
        if self.status != "not judged" or self.bpb_mark is None:
            return self.status
        return "cleared" if self.bpb_mark.cleared else "not cleared"


@dataclass(frozen=True)
class NextStep:
    """One thing to do next."""

    text: str
    command: str
    """Ready to paste."""
    dataset: str
    """What the command trains."""


def judge(level: Dataset, settings: Settings, best: EpochRecord) -> Verdict:
    """The verdict on a run's best epoch."""
    mark = level.pass_mark
    if mark is None:
        return Verdict("not judged", "no mark", None)
    if settings.data == "sample":
        return Verdict("not judged", "built-in rows", mark)
    if settings.tokenizer != "word1000":
        return Verdict("not judged", "another unit", mark)
    if settings.init_from is not None:
        return Verdict("not judged", "vocabulary of another run", mark)
    band, margin = level.band(best["ppl"]), mark - best["ppl"]
    if band == "needs work":
        return Verdict("not cleared", "not below the mark", mark, margin, band)
    reason: Reason = "below a guessed mark" if level.marks_guessed else "below the mark"
    return Verdict("cleared", reason, mark, margin, band)


def next_steps(
    level: Dataset, settings: Settings, best: EpochRecord, baseline: NgramBaseline
) -> list[NextStep]:
    """What to do next, the most promising first."""
    if settings.data == "sample":
        command = train_command(level.name, settings.tokenizer, settings.out)
        return [NextStep(REAL_ROWS, command, level.name)]
    if level.pass_mark is None:
        return []
    if settings.tokenizer == "word1000":
        band = level.band(best["ppl"])
    else:
        band = "cleared" if baseline.beaten_by(best) else "needs work"
    steps = ((item, _command(item, settings)) for item in level.advice[band])
    return [
        NextStep(item.text, command, item.level or level.name)
        for item, command in steps
        if command is not None
    ]


def train_command(dataset: str, tokenizer: str, out: str) -> str:
    """The command that trains a data set as its level recommends; defaults are not said."""
    words = ["newllm", "train", dataset]
    words += [] if tokenizer == "bpe" else ["--tokenizer", tokenizer]
    words += [] if out == DEFAULT_OUT else ["--out", out]
    return shlex.join(words)


def chat_command(checkpoint: str, architecture: str) -> str:
    """The command that talks to a checkpoint, with the file of a block of one's own."""
    own = ["--architecture", architecture] if is_own_block(architecture) else []
    return shlex.join(["newllm", "chat", checkpoint, *own])


def _command(advice: Advice, settings: Settings) -> str | None:
    """The run's command as the advice changes it; None where that changes nothing."""
    if advice.level is not None:
        return train_command(advice.level, settings.tokenizer, settings.out)
    changes = {name: max(getattr(settings, name), size) for name, size in advice.settings.items()}
    for name, factor in advice.factors.items():
        value = getattr(settings, name) * factor
        changes[name] = round(value) if name == "epochs" else float(f"{value:.2g}")
    given = {
        name: value
        for name, value in _chosen(settings).items()
        if name not in advice.dropped and name not in changes
    }
    same = all(getattr(settings, name) == value for name, value in changes.items())
    if same and not any(getattr(settings, name) is not None for name in advice.dropped):
        return None
    words = ["newllm", "train", settings.dataset]
    for name, value in (given | changes).items():
        words += option_words(name, value)
    return shlex.join(words)


def option_words(name: str, value: Any) -> list[str]:
    """A setting as it is given on the command line."""
    if isinstance(value, bool):
        is_on = Settings.model_fields[name].default is True
        return [option_name(name)] if value else [no_option_name(name)] if is_on else []
    values = value if isinstance(value, list) else [value]
    texts = (str(v).removesuffix(".0") if isinstance(v, float) else str(v) for v in values)
    return [option_name(name), *texts]


def _chosen(settings: Settings) -> dict[str, Any]:
    """The settings of a run that are not what its level would give by itself."""
    # Some defaults follow from others: architecture -> batch -> rate; tokenizer, shape -> widths.
    shape = ("tokenizer", "architecture", "num_layers", "context_dim")
    plain = resolve(settings.dataset, {})
    shaped = resolve(settings.dataset, {name: getattr(settings, name) for name in shape})
    batched = resolve(
        settings.dataset, {name: getattr(settings, name) for name in (*shape, "batch_size")}
    )
    left_out = {"dataset", "init_from", "name", "device", "tensorboard", "track", "minutes"}
    # The others go with --from.
    left_out |= {"max_steps", "freeze_old", "rehearse", "rehearsal_share", "rehearsal_last"}
    chosen = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        usual = plain if name in shape else shaped if name == "batch_size" else batched
        standard = getattr(usual, name)
        if name not in left_out and value != standard and value is not None:
            chosen[name] = value
    return chosen
