"""Killed, out of space or read-only at every change of a file: nothing is lost, and it ends alike.

A scenario is run once undisturbed, with all its points written down; then once for each point that
is tried: struck there, looked at, and given again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.forkserver import Jobs, Result
from tests.faults.scenarios import SCENARIOS, Scenario, content, same, write_rows

Tried = Callable[[str], None]
Chosen = Callable[[list[str]], list[int]]


class Trial:
    """A scenario in fresh copies of one folder."""

    def __init__(self, scenario: Scenario, jobs: Jobs, folder: Path) -> None:
        self.scenario, self.jobs = scenario, jobs
        self.rows = write_rows(folder / "rows")
        self.work, self._begin = folder / "work", folder / "begin"
        self.cache = folder / "cache"
        self.work.mkdir()
        jobs.load(scenario.imports)
        for work, arguments in scenario.before(self.work):
            result = jobs.run(work, arguments, self._cache)
            assert result.code == 0, result.output
        shutil.copytree(self.work, self._begin)
        calm = self.fresh().run()
        assert calm.code == 0, calm.output
        if not scenario.in_cache:  # what is encoded already is the subject of `prepare`
            calm = self.fresh().run()
        self.points, self.ends = calm.points, [self.files()]
        if scenario.repeats:
            assert self.run().code == 0
            self.ends.append(self.files())

    @property
    def _cache(self) -> Path:
        return self.work / "cache" if self.scenario.in_cache else self.cache

    def fresh(self) -> Trial:
        """The folder as it was in the beginning."""
        shutil.rmtree(self.work)
        shutil.copytree(self._begin, self.work)
        return self

    def run(self, at: int = 0, fault: str = "kill", again: bool = False) -> Result:
        """Do the work, the second time as one does who was interrupted."""
        arguments = self.scenario.arguments(self.rows, self.work)
        arguments += self.scenario.resume if again else []
        watched = [self.work / "cache" if self.scenario.in_cache else self.work / "out"]
        return self.jobs.run(self.scenario.work, arguments, self._cache, watched, at, fault)

    def files(self) -> dict[str, object]:
        """Content of every file by name; raises where one is not whole."""
        place = self.work / "cache" if self.scenario.in_cache else self.work / "out"
        files = (p for p in sorted(place.rglob("*")) if p.is_file() and ".tmp-" not in str(p))
        return {
            str(p.relative_to(place)): content(p)
            for p in files
            # What began and was never saved is moved to `replaced`, not lost.
            if p.suffix != ".lock" and p.relative_to(place).parts[0] != "replaced"
        }

    def scratch(self) -> list[str]:
        """What half-written files there are."""
        return [p.name for p in self.work.rglob("*") if ".tmp-" in p.name]

    def must_end_alike(self, where: str, output: str) -> None:
        """As if nothing had happened, and nothing else is left."""
        files = self.files()
        assert any(same(files, end) for end in self.ends), where + "\n" + output
        if self.scenario.name != "prepare":  # half a cache is found by its key, and used or ignored
            assert self.scratch() == [], where


def must_be_whole(trial: Trial, where: str, before: dict[str, object]) -> None:
    """Every file that bears its name is whole, and none that was there is gone."""
    assert trial.files().keys() >= before.keys(), where


QUICKLY = {
    "kill": {"train", "prepare", "climb", "prefer", "practise", "tokenizer", "session", "marks"},
    "full": {"train", "prepare", "session"},
    "read-only": {"tokenizer", "marks"},
}
"""What the usual run of the tests tries; `make faults` tries everything."""


@pytest.fixture(autouse=True)
def _thorough(request: pytest.FixtureRequest) -> None:
    parameters = request.node.callspec.params
    usual = parameters["name"] in QUICKLY[parameters.get("fault", "kill")]
    if not usual and not request.config.getoption("--all-faults"):
        pytest.skip("only with --all-faults (make faults)")


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed(name: str, jobs: Jobs, tmp_path: Path, chosen: Chosen, tried: Tried) -> None:
    trial = Trial(SCENARIOS[name], jobs, tmp_path)
    for point in chosen(trial.points):
        before = trial.fresh().files()
        struck = trial.run(point)
        where = f"killed at point {point} of {len(trial.points)}: {struck.points[-1]}"
        assert struck.code == -9, where + "\n" + struck.output
        must_be_whole(trial, where, before)
        again = trial.run(again=True)
        assert again.code == 0, where + "\n" + again.output
        trial.must_end_alike(where, again.output)
        tried(f"kills, {name}")


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_room(
    name: str, fault: str, jobs: Jobs, tmp_path: Path, chosen: Chosen, tried: Tried
) -> None:
    """One line, exit code 2; with room again, the same command goes on."""
    trial = Trial(SCENARIOS[name], jobs, tmp_path)
    for point in chosen(trial.points):
        before = trial.fresh().files()
        struck = trial.run(point, fault)
        where = f"{fault} from point {point} of {len(trial.points)} on: {struck.points}"
        if len(struck.points) < point:  # the rest of the points only free room
            continue
        assert "Traceback" not in struck.output or SCENARIOS[name].work != "command", (
            where + "\n" + struck.output
        )
        must_be_whole(trial, where, before)
        again = trial.run(again=True)
        assert again.code == 0, where + "\n" + again.output
        trial.must_end_alike(where, again.output)
        tried(f"{fault}, {name}")
