"""One record an epoch: the same numbers on the screen, in `metrics.jsonl` and in trackers.

On a terminal the training line is live; anywhere else (a file, a pipe, `nohup`) plain lines are
written and flushed as they grow, so that `tail -f` shows where a run is.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from newllm.results.records import EpochRecord
from newllm.results.runs import write_lines
from newllm.train.tracking import Tracker

_MARKS = (20, 40, 60, 80, 100)

COLAB_MINUTES = 90
"""Minutes after which a free Colab session is cut off."""


def training_summary(record: EpochRecord) -> str:
    """`0.2min | Loss: 2.85`."""
    return f"{record['seconds'] / 60:.1f}min | Loss: {record['train_loss']:.2f}"


def validation_line(record: EpochRecord) -> str:
    """`Val: Loss=2.82 PPL=16.8 Acc=45.1% UNK=41.2% ✓` (BPB in place of UNK for BPE).

    After `newllm prefer` with `Pref=57.1% Len=54.9%` besides.
    """
    bpb, unk_share = record["bpb"], record["unk_share"]
    last = f"UNK={unk_share:.1%}" if bpb is None else f"BPB={bpb:.3f}"
    if "prefers_chosen" in record and "longer_chosen" in record:
        last += f" Pref={record['prefers_chosen']:.1%} Len={record['longer_chosen']:.1%}"
    mark = " ✓" if record["best"] else ""
    return (
        f"  Val: Loss={record['loss']:.2f} PPL={record['ppl']:.1f} "
        f"Acc={record['accuracy']:.1%} {last}{mark}"
    )


def describe_expectation(seconds: float, epochs: int) -> str:
    """How long a run will take, with a warning where a Colab session would not last."""
    minutes = seconds / 60
    length = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    line = f"Expected: about {length if minutes >= 1.5 else '1 minute'} for {epochs} epochs"
    if minutes > COLAB_MINUTES:
        line += (
            f"; a Colab session is cut off after {COLAB_MINUTES}: the run goes on with --resume, "
            f"or fits with --minutes {COLAB_MINUTES - 10}"
        )
    return line


class EpochLog:
    """What the training loop reports to. This one is silent: of several processes one prints."""

    def start_epoch(self, epoch: int, epochs: int, done_fraction: float) -> None: ...
    def step(self, done_fraction: float, loss: float) -> None: ...
    def end_training(self, record: EpochRecord) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainLog(EpochLog):
    """Flushed plain lines, for files and pipes."""

    def __init__(self) -> None:
        self._within_line = False

    def start_epoch(self, epoch: int, epochs: int, done_fraction: float) -> None:
        print(f"Epoch {epoch}/{epochs}\n  Training...", end="", flush=True)
        self._within_line = True
        self._marks = [mark for mark in _MARKS if mark > 100 * done_fraction]

    def step(self, done_fraction: float, loss: float) -> None:
        while self._marks and 100 * done_fraction >= self._marks[0]:
            print(f" {self._marks.pop(0)}%", end="", flush=True)

    def end_training(self, record: EpochRecord) -> None:
        print(f" | {training_summary(record)}", flush=True)
        self._within_line = False

    def note(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """End the line that a stop or an error broke off; theirs follows."""
        if self._within_line:
            print(flush=True)
            self._within_line = False


class LiveLog(EpochLog):
    """A progress bar with the running loss, replaced by the plain line when the epoch ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None

    def start_epoch(self, epoch: int, epochs: int, done_fraction: float) -> None:
        self.console.print(f"Epoch {epoch}/{epochs}", highlight=False)
        self._bar = Progress(
            TextColumn("  Training..."),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("Loss: {task.fields[loss]:.2f}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, loss=float("nan"))
        self._bar.update(self._task, completed=done_fraction)
        self._bar.start()

    def step(self, done_fraction: float, loss: float) -> None:
        assert self._bar is not None
        self._bar.update(self._task, completed=done_fraction, loss=loss)

    def end_training(self, record: EpochRecord) -> None:
        self.close()
        marks = " ".join(f"{mark}%" for mark in _MARKS)
        self.note(f"  Training... {marks} | {training_summary(record)}")

    def note(self, text: str) -> None:
        self.console.print(text.lstrip("\n"), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away, which otherwise keeps the terminal's cursor hidden."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_log() -> EpochLog:
    """Live on a terminal, plain elsewhere."""
    console = Console()
    return LiveLog(console) if console.is_terminal and not console.is_dumb_terminal else PlainLog()


class MetricsFile:
    """`NAME.metrics.jsonl`: one JSON line an epoch, never half a line, never one twice.

    The records also travel in the resume file, and the file is rewritten from them when a run is
    resumed, so that what is printed is what is stored.
    """

    def __init__(self, path: Path, tracker: Tracker | None = None) -> None:
        """A file, and where else the numbers go."""
        self.path, self._tracker = path, tracker
        self._last_tracked = 0

    def write(self, history: list[EpochRecord]) -> None:
        """Store all records so far."""
        write_lines(self.path, history)
        if self._tracker is None or not history or history[-1]["epoch"] <= self._last_tracked:
            return
        record = history[-1]
        self._last_tracked = epoch = record["epoch"]
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._tracker.log(numbers, epoch)

    def close(self) -> None:
        """No more records come."""
        if self._tracker is not None:
            self._tracker.close()
