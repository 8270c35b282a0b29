"""What `prefer` and `practise` leave: read as it was written, refused where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newllm.errors import UserError
from newllm.results.stages import (
    read_practice,
    read_preferences,
    write_practice,
    write_preferences,
)

VERDICT = {"pairs": 8, "after": 0.75, "rejected_likelier": {"all": None}}
PLAN, ROUNDS = {"task": "arithmetic"}, [{"right": 0.5, "checkpoint": "a.pt"}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    verdict, practice = tmp_path / "a.preferences.json", tmp_path / "a.practice.json"
    write_preferences(verdict, VERDICT)
    write_practice(practice, PLAN, ROUNDS)
    assert read_preferences(verdict) == VERDICT
    assert read_practice(practice) == (PLAN, ROUNDS)
    for path in (verdict, practice):
        assert json.loads(path.read_text())["version"] == 1


def test_files_from_before_there_were_versions_are_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VERDICT))
    assert read_preferences(path) == VERDICT
    path.write_text(json.dumps({"plan": PLAN, "rounds": ROUNDS}))
    assert read_practice(path) == (PLAN, ROUNDS)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"version": 2, "plan": {}, "rounds": []}', '{"format": "new-llm climb"}', "null"],
)
def test_others_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match="not a verdict that can be read"):
        read_preferences(path)
    with pytest.raises(UserError, match="damaged; give another --name"):
        read_practice(path)
    path.unlink()
    with pytest.raises(UserError, match="not a verdict that can be read"):
        read_preferences(path)


@pytest.mark.parametrize(
    "content", ["{}", '{"plan": {}, "rounds": {}}', '{"plan": [], "rounds": []}']
)
def test_a_practice_has_a_plan_and_rounds(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match="damaged; give another --name"):
        read_practice(path)
