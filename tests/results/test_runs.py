"""A run's files of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newllm.errors import UserError
from newllm.results.runs import read_lines, write_lines


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    """What Unicode calls a line's end is part of an answer."""
    answers = [
        {"epoch": n, "answer": f"a{end}b"} for n, end in enumerate("\n\r\x0b\x85\u2028\u2029")
    ]
    write_lines(tmp_path / "x.jsonl", answers)
    assert read_lines(tmp_path / "x.jsonl", {"epoch", "answer"}) == answers


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"epoch": 1}) + "\n{}\n")
    with pytest.raises(UserError, match=r"x.jsonl, line 2: expected epoch"):
        read_lines(tmp_path / "x.jsonl", {"epoch"})
