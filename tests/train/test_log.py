"""The published form of the log, on a terminal and in a file, and the record behind it."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newllm.errors import UserError
from newllm.results.records import EpochRecord
from newllm.results.runs import RunFiles
from newllm.settings import resolve
from newllm.train.log import (
    LiveLog,
    MetricsFile,
    PlainLog,
    describe_expectation,
    validation_line,
)
from newllm.train.tracking import Tracker, make_tracker

RECORD: EpochRecord = {
    "epoch": 50, "epochs": 100, "steps": 500, "trained_tokens": 9000, "train_loss": 2.853,
    "rows": 10, "tokens": 90, "nats": 253.926, "loss": 2.8214, "ppl": 16.801, "accuracy": 0.4512,
    "unk_share": 0.4121, "bpb": None, "bpb_assistant": None, "best": True, "skipped_steps": 0,
    "seconds": 12.0, "total_seconds": 600.0,
}  # fmt: skip
PUBLISHED = """\
Epoch 50/100
  Training... 20% 40% 60% 80% 100% | 0.2min | Loss: 2.85
  Val: Loss=2.82 PPL=16.8 Acc=45.1% UNK=41.2% ✓
  [Checkpoint saved]
"""


def report(log: PlainLog | LiveLog, first_share: float = 0.0) -> None:
    log.start_epoch(50, 100, first_share)
    for step in range(1, 11):
        if step / 10 > first_share:
            log.step(step / 10, 2.9)
    log.end_training(RECORD)
    log.note(validation_line(RECORD))
    log.note("  [Checkpoint saved]")
    log.close()


def test_plain_lines_are_the_published_ones(capsys: pytest.CaptureFixture[str]) -> None:
    report(PlainLog())
    assert capsys.readouterr().out == PUBLISHED


def test_resumed_epoch_shows_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    report(PlainLog(), first_share=0.5)
    assert "  Training... 60% 80% 100% | 0.2min" in capsys.readouterr().out


def test_terminal_ends_with_the_same_lines_and_a_cursor() -> None:
    screen = io.StringIO()
    report(LiveLog(Console(file=screen, force_terminal=True, width=100, color_system=None)))
    text = screen.getvalue()
    assert "━" in text, "a bar was shown"
    for line in PUBLISHED.splitlines():
        assert line in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_bpe_shows_bits_per_byte() -> None:
    line = validation_line({**RECORD, "bpb": 1.5234, "unk_share": None, "best": False})
    assert line == "  Val: Loss=2.82 PPL=16.8 Acc=45.1% BPB=1.523"


def test_record_is_stored_and_drawn(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "x.metrics.jsonl", tensorboard(tmp_path))
    file.write([{**RECORD, "epoch": 49}])
    file.write([{**RECORD, "epoch": 49}, RECORD])
    file.close()
    lines = (tmp_path / "x.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [49, 50]
    assert json.loads(lines[1]) == RECORD
    assert drawn(tmp_path / "tensorboard" / "a_run") == [(49, RECORD["ppl"]), (50, RECORD["ppl"])]


def tensorboard(folder: Path) -> Tracker | None:
    return make_tracker(RunFiles(folder, "a_run"), resolve("dolly", {"track": "tensorboard"}))


def drawn(curves: Path) -> list[tuple[int, Any]]:
    """Epochs and perplexities that TensorBoard shows."""
    reader = EventAccumulator(str(curves)).Reload()
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars("ppl")]


def test_a_resumed_run_draws_no_epoch_twice(tmp_path: Path) -> None:
    first: EpochRecord = {**RECORD, "epoch": 1, "ppl": 9.0}
    second: EpochRecord = {**RECORD, "epoch": 2, "ppl": 9.0}
    file = MetricsFile(tmp_path / "x.metrics.jsonl", tensorboard(tmp_path))
    file.write([first])
    file.write([first, second])  # and the run dies before it is saved
    file.close()
    file = MetricsFile(tmp_path / "x.metrics.jsonl", tensorboard(tmp_path))
    file.write([first])
    file.write([first, {**second, "ppl": 8.0}])
    file.close()
    assert drawn(tmp_path / "tensorboard" / "a_run") == [(1, 9.0), (2, 8.0)]


def test_expectation_warns_of_the_colab_cut() -> None:
    for seconds in (20, 60, 80):
        assert describe_expectation(seconds, 3) == "Expected: about 1 minute for 3 epochs"
    assert describe_expectation(60 * 50, 3) == "Expected: about 50 minutes for 3 epochs"
    long = describe_expectation(3600 * 3, 100)
    assert "3.0 hours" in long
    assert "--resume" in long
    assert "--minutes 80" in long


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_every_number(tmp_path: Path, monkeypatch, name: str) -> None:
    """In the place of a package that is not there, an object with its three functions."""
    calls: list[Any] = []
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.init = lambda **given: calls.append(given)  # type: ignore[attr-defined]
    module.log = lambda numbers, step: calls.append((step, numbers))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append("finished")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    settings = resolve("dolly", {"track": name})
    tracker = make_tracker(RunFiles(tmp_path, "a_run"), settings)
    file = MetricsFile(tmp_path / "metrics.jsonl", tracker)
    history: list[Any] = [{"epoch": 1, "loss": 2.5, "best": True, "bpb": None, "seconds": 3}]
    file.write(history)
    file.write(history)
    history.append({**history[0], "epoch": 2, "loss": 2.0})
    file.write(history)
    file.close()
    begun, *steps, ended = calls
    assert (begun["name"], begun["config"]["track"], ended) == ("a_run", name, "finished")
    assert steps == [
        (1, {"epoch": 1, "loss": 2.5, "seconds": 3}),
        (2, {"epoch": 2, "loss": 2.0, "seconds": 3}),
    ]


def test_a_tracker_that_is_not_installed(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("it is installed")
    with pytest.raises(UserError, match=r"--track wandb: needs wandb: pip install.*\[wandb\]"):
        make_tracker(RunFiles(tmp_path, "a_run"), resolve("dolly", {"track": "wandb"}))
