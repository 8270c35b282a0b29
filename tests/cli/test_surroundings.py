"""Terminals, pipes, folders and variables that people have: work, or one line before any work."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from newllm.cli import main

ROWS = [
    {"messages": [{"role": "user", "content": f"りんご{i}は何色ですか。"},
                  {"role": "assistant", "content": "赤いです ✓ é"}]}
    for i in range(30)
]  # fmt: skip
TINY = "--max-steps 2 --context-dim 16 --embed-dim 16 --num-layers 1 --vocab-size 300".split()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.mark.parametrize("encoding", ["cp932", "cp1252", "ascii", "utf-8", "koi8-r", "utf-16"])
@pytest.mark.parametrize("verb", ["data", "train"])
def test_output_that_cannot_be_encoded_is_replaced(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, verb: str
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    more = [*TINY, "--out", str(tmp_path / "out")] if verb == "train" else []
    code = main([verb, "chat", "--data", str(rows), *more])
    monkeypatch.undo()
    out.flush()
    written = out.buffer.getvalue()  # type: ignore[attr-defined]
    text = written.decode("utf-8" if encoding == "ascii" else encoding)  # click mends a C locale
    assert code == 0
    assert "train" in text
    if verb == "data":
        assert ("りんご" in text) == (encoding not in ("cp1252", "koi8-r"))
        assert "\ufffd" not in text


def run(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A shell command, in which `newllm` is this one."""
    newllm = f"'{sys.executable}' -m newllm"
    environment = {**os.environ, **variables}
    return subprocess.run(
        command.replace("newllm ", f"{newllm} "), shell=True, capture_output=True, text=True,
        env=environment, errors="surrogateescape",
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize("verb", ["", "--version"])
def test_a_full_disk_is_one_line(verb: str, locale: str) -> None:
    done = run(f"newllm {verb} > /dev/full", LC_ALL=locale)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr


def test_streams_that_are_closed(rows: Path) -> None:
    done = run(f"newllm data chat --data {rows} <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT=1"),
        ({"NUMBA_NUM_THREADS": "0"}, "NUMBA_NUM_THREADS=0"),
        ({"NUMBA_NUM_THREADS": "-2"}, "NUMBA_NUM_THREADS=-2"),
        ({"NEWLLM_CACHE": "/proc/nope"}, "set NEWLLM_CACHE"),
        ({"HOME": "/proc/nope"}, "set NEWLLM_CACHE"),
    ],
)
def test_what_cannot_work_is_told_before_any_training(
    rows: Path, tmp_path: Path, monkeypatch, capsys, variables: dict[str, str], told: str
) -> None:
    for name in ("NEWLLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "chat", "--data", str(rows), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert "Epoch" not in captured.out


@pytest.mark.parametrize("out", ["/proc/nope/x", "rows.jsonl", "rows.jsonl/x"])
def test_places_where_no_run_can_be(rows: Path, monkeypatch, capsys, out: str) -> None:
    monkeypatch.chdir(rows.parent)
    assert main(["train", "chat", "--data", "rows.jsonl", *TINY, "--out", out]) == 2
    error = capsys.readouterr().err
    assert "give another --out" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_paths_that_are_no_text(rows: Path, tmp_path: Path) -> None:
    """Shift JIS, say, on a disk that Windows wrote: named byte for byte, in files and on screen."""
    folder = tmp_path / os.fsdecode("データ".encode("cp932"))
    folder.mkdir()
    rows.rename(folder / "train.jsonl")
    train = ["train", "chat", "--data", str(folder), *TINY, "--out", str(folder)]
    assert main(train) == 0
    assert main([*train, "--resume"]) == 0
    best = next(folder.glob("best_*.pt"))
    for verb in (["info"], ["eval"], ["generate", "--prompt", "hi", "--max-new-tokens", "2"]):
        assert main([verb[0], str(best), *verb[1:]]) == 0
    for file in folder.glob("*.*"):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            file.read_text(encoding="utf-8")
    done = run(f"newllm info '{best}'")
    assert str(best) in done.stdout


def test_kernels_without_a_folder_to_keep_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    from newllm.model.kernels.numerics import one_thread

    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    assert one_thread(lambda x: x + 1)(1) == 2
