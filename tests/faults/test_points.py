"""Killed, out of space or read-only at every change of a file: nothing is lost, and it ends alike.

A scenario is run once undisturbed, with all its points written down; then once for each point that
is tried: struck there, looked at, and given again.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.forkserver import Jobs, Result
from tests.faults.scenarios import SCENARIOS, Scenario, content, same, write_rows

_DRAWN = re.compile(r"[0-9a-f]{32}\.session$")

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
        if "cache" not in scenario.places:  # what is encoded already is the subject of `prepare`
            calm = self.fresh().run()
        self.points, self.ends = calm.points, [self.files()]
        if scenario.repeats:
            assert self.run().code == 0
            self.ends.append(self.files())

    @property
    def _cache(self) -> Path:
        return self.work / "cache" if "cache" in self.scenario.places else self.cache

    @property
    def _places(self) -> list[Path]:
        return [self.work / place for place in self.scenario.places]

    def fresh(self) -> Trial:
        """The folder as it was in the beginning."""
        shutil.rmtree(self.work)
        shutil.copytree(self._begin, self.work)
        return self

    def run(self, at: int = 0, fault: str = "kill", again: bool = False) -> Result:
        """Do the work, the second time as one does who was interrupted."""
        arguments = self.scenario.arguments(self.rows, self.work)
        arguments += self.scenario.resume if again else []
        return self.jobs.run(self.scenario.work, arguments, self._cache, self._places, at, fault)

    def files(self) -> dict[str, object]:
        """Content of every file by name; raises where one is not whole."""
        self.scenario.held(self.work)
        found = {}
        for place in self._places:
            for path in sorted(p for p in place.rglob("*") if p.is_file()):
                name = path.relative_to(place)
                # What began and was never saved is moved to `replaced`, not lost. Folders of parts
                # are read with the resume file that names them.
                aside = path.suffix == ".lock" or name.parts[0] == "replaced"
                if aside or any(".tmp-" in part or ".parts-" in part for part in name.parts):
                    continue
                # A server draws the names of its conversations.
                shown = "conversation" if path.parent == place and _DRAWN.match(path.name) else name
                found[f"{place.name}/{shown}"] = content(path)
        return found

    def scratch(self) -> list[str]:
        """What half-written files there are."""
        return [p.name for p in (self.work / "out").rglob("*") if ".tmp-" in p.name]

    def must_end_alike(self, where: str, output: str) -> None:
        """As if nothing had happened, and nothing else is left."""
        files = self.files()
        assert any(same(files, end) for end in self.ends), where + "\n" + output
        if "out" in self.scenario.places:  # half a cache is found by its key, and used or ignored
            assert self.scratch() == [], where


def must_be_whole(trial: Trial, where: str, before: dict[str, object]) -> None:
    """Every file that bears its name is whole, and none that was there is gone."""
    assert trial.files().keys() >= before.keys(), where


QUICKLY = {
    "kill": {
        "train",
        "prepare",
        "counts",
        "sharded",
        "climb",
        "prefer",
        "practise",
        "tokenizer",
        "session",
        "sessions",
        "marks",
    },
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
def test_killed(name: str, jobs: Jobs, place: Path, chosen: Chosen, tried: Tried) -> None:
    trial = Trial(SCENARIOS[name], jobs, place)
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


MOMENTS = {"train": 40, "prefer": 20, "practise": 20, "climb": 20, "sessions": 20}
"""Works that are killed at random moments as well, and how often each is brought to its end."""


@pytest.mark.parametrize("name", MOMENTS)
def test_killed_at_random_moments(
    name: str, jobs: Jobs, place: Path, request: pytest.FixtureRequest, tried: Tried
) -> None:
    """Between the points too, several times in a row; then it ends as if nothing had happened."""
    trial = Trial(SCENARIOS[name], jobs, place)
    before = time.monotonic()
    assert trial.fresh().run().code == 0
    rng, milliseconds = random.Random(name), 1000 * (time.monotonic() - before)
    rounds = MOMENTS[name] if request.config.getoption("--all-faults") else 1
    for _ in range(rounds):
        trial.fresh()
        kills = 0
        for _ in range(4):
            struck = trial.run(rng.randint(1, int(milliseconds)), "moment", again=True)
            assert struck.code in (0, -signal.SIGALRM), struck.output
            kills += struck.code != 0
            trial.files()
        again = trial.run(again=True)
        where = f"killed {kills} times"
        assert again.code == 0, where + "\n" + again.output
        trial.must_end_alike(where, again.output)
        for _ in range(kills):
            tried(f"kills at random moments, {name}")


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_room(
    name: str, fault: str, jobs: Jobs, place: Path, chosen: Chosen, tried: Tried
) -> None:
    """One line, exit code 2; with room again, the same command goes on."""
    trial = Trial(SCENARIOS[name], jobs, place)
    for point in chosen(trial.points):
        before = trial.fresh().files()
        struck = trial.run(point, fault)
        where = f"{fault} from point {point} of {len(trial.points)} on: {struck.points}"
        if len(struck.points) < point:  # the rest of the points only free room
            continue
        said = [line for line in struck.output.splitlines() if line.startswith("newllm: ")]
        assert struck.code == 2, where + "\n" + struck.output
        assert 1 <= len(said) <= SCENARIOS[name].processes, where + "\n" + struck.output
        assert "Traceback" not in struck.output, where + "\n" + struck.output
        assert fault == "full" or "free space" not in struck.output, where + "\n" + struck.output
        must_be_whole(trial, where, before)
        again = trial.run(again=True)
        assert again.code == 0, where + "\n" + again.output
        trial.must_end_alike(where, again.output)
        tried(f"{fault}, {name}")
