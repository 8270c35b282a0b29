"""Preparing at any size: the same bytes by any number of processes and after any interruption."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from newllm.data import encode, prepare, shards
from newllm.data.encode import Encoder, encode_blocks
from newllm.data.located import Located
from newllm.data.prepare import Encoded, Encoding, PreparationProgress, exclusive, prepare_training
from newllm.data.sources import open_source
from newllm.data.tokenizers import BPE
from newllm.datasets import DATASETS
from newllm.errors import UserError

ENCODING = Encoding("ultrachat", "bpe", 300, 128)
SHARD = 40_000
"""Tokens: some rows of several hundred blocks."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 training rows in two files, a few of them broken, and 40 validation rows."""
    folder, rng = tmp_path_factory.mktemp("rows"), random.Random(0)

    def row() -> str:
        turns = [" ".join(f"w{rng.randrange(99)}" for _ in range(rng.randrange(1, 9)))
                 for _ in range(2 * rng.randrange(1, 4))]  # fmt: skip
        return json.dumps({"data": turns} if rng.random() > 0.01 else {"data": ["half"]})

    for name, count in (("train-0", 2500), ("train-1", 1500), ("validation", 40)):
        (folder / f"{name}.jsonl").write_text("\n".join(row() for _ in range(count)))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "SHARD_TOKENS", SHARD)
    return tmp_path / "cache"


def made(rows: Path, workers: int | None = None) -> Encoded:
    """Encoded by so many processes from the first block on; None: as ever."""
    with pytest.MonkeyPatch.context() as patch:
        if workers is not None:
            patch.setattr(encode, "usable_cores", lambda: workers)
            patch.setattr(encode, "ALONE_BLOCKS", 0)
        return prepare_training(open_source(DATASETS["ultrachat"], str(rows)), ENCODING)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEWLLM_CACHE", str(tmp_path_factory.mktemp("expected")))
        patch.setattr(prepare, "SHARD_TOKENS", SHARD)
        encoded = made(rows, workers=1)
    assert sum(name.startswith("train-") for name in os.listdir(encoded.folder)) >= 9
    return content(encoded.folder)


def test_any_number_of_processes_writes_the_same(rows, expected, monkeypatch) -> None:
    monkeypatch.setattr(encode, "ALONE_BLOCKS", 2)
    monkeypatch.setattr(encode, "usable_cores", lambda: 3)
    encoded = made(rows)
    assert content(encoded.folder) == expected
    counts = encoded.accounting["train"]
    assert (counts.rows, counts.documents + counts.malformed) == (4000, 4000)
    assert counts.malformed > len(counts.malformed_examples) == 20
    assert [p.name for p in encoded.folder.parent.iterdir() if p.name[0] != "."] == [
        encoded.folder.name
    ]


def test_small_data_start_no_process(rows, monkeypatch) -> None:
    monkeypatch.setattr(encode, "usable_cores", lambda: 64)
    monkeypatch.setattr(encode, "_pool", None)
    assert made(rows).accounting["train"].rows == 4000


KILLED = """
import os, signal, sys
import psutil
from pathlib import Path
from newllm.data import encode, prepare
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import DATASETS

prepare.SHARD_TOKENS = int(sys.argv[2])
save, saves = prepare.Partial.save_shard, []

def die_later(self, writer):
    save(self, writer)
    saves.append(writer.shards)
    if len(saves) == 2:
        (self.folder / "train-00002.tokens.npy").write_bytes(b"half a shard")
        workers = [str(child.pid) for child in psutil.Process().children()]
        print(" ".join(workers), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

prepare.Partial.save_shard = die_later
encode.usable_cores, encode.ALONE_BLOCKS = (lambda: 2), 0
source = open_source(DATASETS["ultrachat"], sys.argv[1])
prepare_training(source, Encoding("ultrachat", "bpe", 300, 128))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_in_the_middle_it_goes_on(rows, expected, cache, capsys, monkeypatch) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(rows), str(SHARD)], capture_output=True, text=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = [int(pid) for pid in result.stdout.split()]
    assert len(left) == 2
    (partial,) = (cache / "encoded").glob("*.partial")
    assert len(json.loads((partial / "progress.json").read_text())["files"]) == 1 + 2 * 3
    encoded_rows = []

    class Counted(Encoder):
        def __call__(self, items):
            encoded_rows.append(len(items))
            return super().__call__(items)

    monkeypatch.setattr(prepare, "Encoder", Counted)
    encoded = made(rows, workers=1)
    assert content(encoded.folder) == expected
    done = sum(encoded_rows)
    assert 0 < done < 4000
    assert f"interrupted preparation: {4040 - done:,} rows are encoded" in capsys.readouterr().err
    until = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in left) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in left), "workers outlived the killed process"


def test_a_damaged_remainder_is_made_again(rows, expected, cache, capsys, monkeypatch) -> None:
    fill_disk(monkeypatch, after=4)
    with pytest.raises(UserError):
        made(rows, workers=1)
    monkeypatch.undo()
    monkeypatch.setenv("NEWLLM_CACHE", str(cache))
    monkeypatch.setattr(prepare, "SHARD_TOKENS", SHARD)
    (shard,) = (cache / "encoded").glob("*.partial/train-00000.tokens.npy")
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(bytes(damaged))
    assert content(made(rows, workers=1).folder) == expected
    assert "damaged; starting afresh" in capsys.readouterr().err


def fill_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let only so many files of shards be written."""
    save, written = shards._save, []

    def full(path: Path, array: object) -> None:
        if len(written) >= after:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        save(path, array)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_save", full)


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_is_told_and_costs_no_shard(rows, expected, monkeypatch, number) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, after=7)
        with pytest.raises(UserError, match=r"train-00002.*No space left.*2 finished shards are"):
            made(rows, workers=number)
    assert content(made(rows, workers=1).folder) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        shards._save(Path("/dev/full"), np.ones(9))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")


def test_rows_that_vanish_are_no_broken_rows(rows, expected, tmp_path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in rows.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    source = open_source(DATASETS["ultrachat"], str(copy))
    (copy / "train-1.jsonl").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"train-1.jsonl: cannot be read any more"):
        prepare_training(source, ENCODING, BPE.train(["w1 w2"], 300))
    (tmp_path / "elsewhere").rename(copy / "train-1.jsonl")
    assert made(copy).accounting["train"].rows == 4000


def encoder() -> Encoder:
    return Encoder(BPE.train(["some words"], 270), "ultrachat", 128)


def located(count: int) -> list[Located]:
    return [Located(f"row {n}", {"data": [f"q{n}", f"a{n}"]}) for n in range(count)]


def test_a_worker_that_is_ended_is_told() -> None:
    others = {*psutil.Process().children()}  # of tests before this one
    blocks = encode_blocks(iter(located(50_000)), encoder(), workers=2)
    next(blocks)
    (child, _) = {*psutil.Process().children()} - others
    child.kill()
    with pytest.raises(UserError, match="was ended"):
        list(blocks)
    assert not {*psutil.Process().children()} - others


def test_rows_are_read_as_they_are_needed() -> None:
    read = []

    def source():
        for item in located(20_000):
            read.append(1)
            yield item

    others = {*psutil.Process().children()}
    blocks = encode_blocks(source(), encoder(), workers=2)
    assert next(blocks).accounting.rows == 512
    assert len(read) <= 6 * 512
    blocks.close()
    assert not {*psutil.Process().children()} - others


def test_a_fault_in_a_worker_is_a_fault(monkeypatch) -> None:
    with pytest.raises(RuntimeError, match=r"in a worker process:\n.*Traceback"):
        list(encode_blocks(["no row"], encoder(), workers=2))  # type: ignore[list-item]


def test_progress_is_plain_lines_without_a_terminal(capsys, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = PreparationProgress("train", done=1000)
    for second in range(70):
        now[0] = float(second)
        progress.update(1000 + 100 * second)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        f"Preparing train: {1000 + 100 * second:,} rows, 100 rows/s" for second in (5, 35, 65)
    ]


def test_a_second_process_waits(tmp_path, capsys) -> None:
    inside, order = threading.Event(), []

    def first() -> None:
        with exclusive(tmp_path / "key"):
            inside.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with exclusive(tmp_path / "key"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert "Waiting for another process" in capsys.readouterr().err


def test_processes_that_end_at_their_start_are_told(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = tmp_path / "ends"
    ends.write_text("#!/bin/sh\nexit 3\n")
    ends.chmod(0o755)
    monkeypatch.setattr(encode.sys, "executable", str(ends))
    with pytest.raises(UserError, match=r"a process that encoded rows was ended \(code 3"):
        made(rows, workers=2)
