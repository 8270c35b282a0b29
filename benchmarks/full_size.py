"""A data set as large as UltraChat: what preparing and training take, and whether it grows.

Every step is a process of its own, watched from outside: its memory is that of all its processes
together, files mapped and libraries shared counted in each. A tenth of the rows goes first; what is
bounded stays as it is, what is linear becomes ten times as much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import tokenizers

from benchmarks.dialogues import write_dialogues
from benchmarks.measure import PeakMemory, Report, Row, progress
from newllm.cores import usable_cores
from newllm.data.tokenizers import load_tokenizer
from newllm.errors import UserError
from newllm.model.spec import COUNTS

_VALIDATION_ROWS = 500
_SAMPLE_ROWS = 5000
"""Rows that the bare tokenizer encodes, before the preparation and after it."""
_MODEL = "--num-layers 1 --context-dim 64 --embed-dim 64 --hidden-dim 128 --device cpu".split()

_PREPARE = """
import sys
from pathlib import Path
from newllm.data.tokenizers import load_tokenizer
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.train.counting import prepare_counts

folder, file, counts = sys.argv[1:]
tokenizer = load_tokenizer(Path(file))
encoding = Encoding("ultrachat", "bpe", tokenizer.vocab_size, 128)
source = open_source(find_dataset("ultrachat"), folder)
encoded = prepare_training(source, encoding, tokenizer)
if int(counts):
    prepare_counts([encoded], int(counts))
"""


@dataclass(frozen=True)
class _Watched:
    """A command that has run."""

    seconds: float
    peak_mb: float
    seen: dict[str, float] = field(default_factory=dict)
    """Seconds until each line came."""


def full_size(rows: int, mean_characters: int, minutes: float, vocab_size: int) -> Report:
    """Prepare and train on made-up dialogues, first a tenth of them and then all.

    Args:
        rows: dialogues.
        mean_characters: of a dialogue.
        minutes: how long each of the two models trains.
        vocab_size: entries of the vocabulary.
    """
    preparing, training = [], []
    for count in (rows // 10, rows):
        with tempfile.TemporaryDirectory() as folder:
            prepared, trained = measure(Path(folder), count, mean_characters, minutes, vocab_size)
        preparing.append(prepared)
        training.append(trained)
    facts = {"cores_used": usable_cores(), "mean_characters": mean_characters}
    return Report({"Preparing": preparing, "Training": training}, facts)


def measure(
    folder: Path, rows: int, mean_characters: int, minutes: float, vocab_size: int
) -> tuple[Row, Row]:
    """What preparing so many dialogues takes, and what training on them does."""
    data, vocabulary = folder / "rows" / "ultrachat", folder / "vocabulary.json"
    data.mkdir(parents=True)
    progress(f"writing {rows:,} dialogues")
    size = write_dialogues(data / "train.jsonl", rows, 0, mean_characters)
    write_dialogues(data / "validation.jsonl", _VALIDATION_ROWS, 1, mean_characters)
    progress("training the vocabulary")
    flags = ["--data-dir", str(data.parent), "--vocab-size", str(vocab_size), "-o", str(vocabulary)]
    learnt = _watch([*"-m newllm tokenizer train --levels ultrachat".split(), *flags], folder)
    progress("preparing")
    before = _bare_rows_per_second(data, vocabulary)
    words = ["-c", _PREPARE, str(data), str(vocabulary)]
    prepared = _watch([*words, "0"], folder)
    after = _bare_rows_per_second(data, vocabulary)
    progress("counting")
    counted = _watch([*words, str(COUNTS)], folder)  # rows are found as they were prepared
    progress(f"training for {minutes:g} minutes")
    flags = ["--data", str(data), "--tokenizer-file", str(vocabulary), "--out", str(folder / "out")]
    flags += ["--name", "tiny", "--epochs", "1", "--minutes", str(minutes), *_MODEL]
    trained = _watch(["-m", "newllm", "train", "ultrachat", *flags], folder)
    summary = json.loads((folder / "out" / "tiny.summary.json").read_text(encoding="utf-8"))
    shards = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    speed = (rows + _VALIDATION_ROWS) / prepared.seconds
    bare = (before + after) / 2
    return (
        {
            "rows": rows,
            "vocabulary_seconds": learnt.seconds,
            "vocabulary_peak_mb": learnt.peak_mb,
            "seconds": prepared.seconds,
            "rows_per_second": speed,
            "bare_tokenizer_rows_per_second": bare,
            "ratio_to_bare_tokenizer": speed / bare,
            "peak_mb": prepared.peak_mb,
            "counting_seconds": counted.seconds,
            "counting_peak_mb": counted.peak_mb,
            "rows_gb": size / 1e9,
            "shards_gb": shards / 1e9,
        },
        {
            "rows": rows,
            "tokens": summary["data"]["accounting"]["train"]["tokens"],
            "seconds_to_first_step": trained.seen["Epoch 1/1"],
            "steps": summary["best"]["steps"],
            "tokens_per_second": summary["trained_tokens"] / (60 * summary["minutes"]),
            "peak_mb": trained.peak_mb,
            "seconds": trained.seconds,
        },
    )


def _watch(arguments: list[str], folder: Path) -> _Watched:
    """Run Python with these arguments; what it says on the error channel is shown."""
    environment = {**os.environ, "NEWLLM_CACHE": str(folder / "cache")}
    started = time.perf_counter()
    seen: dict[str, float] = {}
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        with PeakMemory(psutil.Process(process.pid)) as memory:
            for line in process.stdout:
                seen.setdefault(line.strip(), time.perf_counter() - started)
            code = process.wait()
    if code:
        raise UserError(f"{' '.join(arguments[:3])}: ended with code {code}")
    return _Watched(time.perf_counter() - started, memory.peak_mb, seen)


def _bare_rows_per_second(data: Path, vocabulary: Path) -> float:
    """The library's speed on the first rows: all cores, nothing of ours around it."""
    stored = load_tokenizer(vocabulary).to_dict()
    library = tokenizers.Tokenizer.from_str(stored["definition"])
    with (data / "train.jsonl").open(encoding="utf-8") as file:
        rows = [
            json.loads(line)["data"] for line, _ in zip(file, range(_SAMPLE_ROWS), strict=False)
        ]
    started = time.perf_counter()
    for begin in range(0, len(rows), 512):
        texts = [text for row in rows[begin : begin + 512] for text in row]
        library.encode_batch_fast(texts, add_special_tokens=False)
    return len(rows) / (time.perf_counter() - started)
