"""Marks in bits per byte: which one judges a run, and which none."""

from __future__ import annotations

from pathlib import Path

import pytest

from newllm.errors import UserError
from newllm.results.marks import Mark, add_marks, judge_bpb, known_marks, own_marks_file


def mark(bpb: float, parameters: int = 1000, minutes: float = 3.0, rows: str = "r") -> Mark:
    return Mark("dolly", rows, bpb, parameters, minutes, {"0.003": bpb}, "m", "2026-01-01", "c")


@pytest.fixture(autouse=True)
def _own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path))


def test_the_nearest_mark_with_no_less_time_and_parameters_judges() -> None:
    add_marks([mark(2.0), mark(1.8, minutes=30), mark(1.7, parameters=9000, minutes=30)])
    verdict = judge_bpb("dolly", "r", 1.9, 1000, 2.9)
    assert verdict is not None
    assert (verdict.bpb, verdict.cleared) == (2.0, True)
    assert "the best of 1 learning rates" in verdict.how
    verdict = judge_bpb("dolly", "r", 1.9, 1000, 4.0)
    assert verdict is not None
    assert (verdict.bpb, verdict.cleared) == (1.8, False)
    verdict = judge_bpb("dolly", "r", 1.6, 5000, 4.0)
    assert verdict is not None
    assert (verdict.bpb, verdict.cleared) == (1.7, True)


@pytest.mark.parametrize(
    ("dataset", "rows", "bpb", "parameters", "minutes"),
    [
        ("math", "r", 1.0, 1000, 1.0),
        ("dolly", "other", 1.0, 1000, 1.0),
        ("dolly", "r", None, 1000, 1.0),
        ("dolly", "r", 1.0, 1100, 1.0),
        ("dolly", "r", 1.0, 1000, 3.2),
    ],
)
def test_no_mark_fits(dataset, rows, bpb, parameters, minutes) -> None:
    add_marks([mark(2.0)])
    assert judge_bpb(dataset, rows, bpb, parameters, minutes) is None


def test_equal_is_not_beaten() -> None:
    add_marks([mark(2.0)])
    verdict = judge_bpb("dolly", "r", 2.0, 1000, 3.0)
    assert verdict is not None
    assert not verdict.cleared


def test_a_new_measurement_takes_the_place_of_the_old() -> None:
    add_marks([mark(2.0), mark(1.5, minutes=9)])
    add_marks([mark(1.9)])
    own = [m for m in known_marks() if m.rows == "r"]
    assert sorted(m.bpb for m in own) == [1.5, 1.9]


def test_a_damaged_file_is_named() -> None:
    own_marks_file().parent.mkdir(parents=True, exist_ok=True)
    own_marks_file().write_text('[{"dataset": 1}]')
    with pytest.raises(UserError, match=r"marks.json: not a file of marks"):
        known_marks()
