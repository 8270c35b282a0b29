"""`climb.json`, what `newllm climb` leaves: what was asked for, what came of each finished level.

After each level every level so far is evaluated in bits per byte, which gives the forgetting
matrix: row i is the model after level i, column j the validation rows of level j; the diagonal is
each level right after it was learned. Backward transfer is that of GEM (arXiv:1706.08840), with the
sign of a gain: positive where earlier levels are better at the end than right after they were
learned.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from typing_extensions import NotRequired

from newllm.config import DEFAULT_OUT, option_name
from newllm.errors import UserError
from newllm.files import write_text
from newllm.results.records import Metrics
from newllm.results.verdict import NextStep, option_words
from newllm.settings import SHAPE

NAME, FORMAT, VERSION = "climb.json", "new-llm climb", 1
TOKENIZER = "tokenizer.json"
"""The one vocabulary of all levels, in the same folder."""

PLAIN_TEXT = "text"
"""The data set that may come before the levels."""

GO_ON, AGAIN = "go on with the climb", "the climb again, twice as long"

Matrix = list[list[float | None]]


def forgetting_matrix(
    levels: Sequence[str], scores: Sequence[Mapping[str, float | None]]
) -> Matrix:
    """One row a finished level, one column a level; None where it was not evaluated.

    `scores` are, for each level that is done, in the order of `levels`, bits per byte by data set.
    """
    return [[row.get(level) for level in levels] for row in scores]


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over the earlier levels of (right after learning) - (after the last level), in bits
    per byte; positive: they got better.

    None with fewer than two finished levels, or where a number it needs is missing.
    """
    if len(matrix) < 2:
        return None
    changes = []
    for level, last in enumerate(matrix[-1][: len(matrix) - 1]):
        learned = matrix[level][level]
        if learned is None or last is None:
            return None
        changes.append(learned - last)
    return sum(changes) / len(changes)


@dataclass(frozen=True)
class ClimbConfig:
    """What a climb was asked to do."""

    levels: list[str]
    """Data sets, in the order of training."""
    data_dir: str = "hub"
    """hub, sample, or a folder with a folder for every data set."""
    out: str = DEFAULT_OUT
    settings: dict[str, Any] = field(default_factory=dict)
    """Training settings for every level, in place of its own."""
    rehearsal_share: float | None = None
    """Fraction of the tokens from earlier levels; None: what each level recommends."""
    until_cleared: bool = False
    keep_going: bool = False
    skills: bool = False
    """Check what the model can do after each level, on that level's rows."""
    run_code: bool = False
    """Run the code that it answers with, sandboxed."""
    prefer: bool = False
    """Learn from HH-RLHF's pairs which answers people preferred, after its level."""
    text: str | None = None
    """Where the plain text is that comes before the levels; None: as the others' rows."""

    def data_of(self, dataset: str) -> str:
        """Where the rows of a data set are."""
        if dataset == PLAIN_TEXT and self.text is not None:
            return self.text
        in_folder = self.data_dir not in ("hub", "sample")
        return str(Path(self.data_dir) / dataset) if in_folder else self.data_dir

    def command(self, *flags: str) -> str:
        """The command line of this climb, ready to paste."""
        words = ["newllm", "climb", "--levels", *self.levels]
        words += ["--data-dir", self.data_dir, "--out", self.out]
        if self.text is not None:
            words += ["--text", self.text]
        # Sizes that were chosen for --minutes are chosen again: --resume finds them in the file.
        chosen = SHAPE if "embed_dim" in self.settings else ()
        for name, value in self.settings.items():
            words += [] if name in chosen else option_words(name, value)
        if self.rehearsal_share is not None:
            words += ["--rehearsal-share", f"{self.rehearsal_share:g}"]
        given = ("until_cleared", "keep_going", "skills", "run_code", "prefer")
        words += [option_name(name) for name in given if getattr(self, name)]
        return shlex.join([*words, *flags])


class LevelResult(TypedDict):
    """A finished level of a climb."""

    dataset: str
    run: str
    best: str
    """Name of the checkpoint of its best epoch."""
    start_next: str
    """Name of the checkpoint that the next level begins with."""
    rounds: int
    """Trainings of this level (more than one with --until-cleared)."""
    grown: dict[str, list[int]] | None
    """Size -> [before, after]; None where the model kept its shape."""
    status: str
    """cleared, not cleared or not judged, by the mark in bits per byte."""
    minutes: float
    """Of training."""
    evaluations: dict[str, Metrics]
    """Of the levels so far, by data set."""
    skills: dict[str, Any] | None
    """What :func:`newllm.evaluate.skills.skill_check` returns; None where it was not asked for."""
    preferred: NotRequired[dict[str, Any] | None]
    """Of the stage of preferences: the name of its `run`, and its verdict, as
    :func:`newllm.train.prefer.judge_preferences` returns it; None where there was none."""


@dataclass(frozen=True)
class Climb:
    """One model's way through several levels."""

    levels: tuple[str, ...]
    rehearsal_share: float | None
    results: tuple[LevelResult, ...]
    matrix: Matrix
    """Bits per byte: rows after a level, columns of a level."""
    backward_transfer: float | None
    """Bits per byte that earlier levels gained since they were learned; below 0: forgotten."""
    next: NextStep | None
    """Its next level; of a finished climb in which not every level was cleared, a longer one."""

    @property
    def runs(self) -> set[str]:
        """Names of the runs of its finished levels, with those of their preferences."""
        stages = [result.get("preferred") for result in self.results]
        return {result["run"] for result in self.results} | {s["run"] for s in stages if s}

    @property
    def has_preferences(self) -> bool:
        """Whether a level of it was followed by a stage of preferences."""
        return any(result.get("preferred") for result in self.results)

    @property
    def current(self) -> str | None:
        """The level that it is at; None when it is finished."""
        left = self.levels[len(self.results) :]
        return left[0] if left else None


def write_climb(folder: Path, config: ClimbConfig, results: Sequence[LevelResult]) -> None:
    """Write the file, atomically."""
    matrix = _matrix(results)
    content = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(config),
        "tokenizer": TOKENIZER,
        "results": results,
        "backward_transfer": backward_transfer(matrix),
    }
    write_text(folder / NAME, json.dumps(content, ensure_ascii=False, indent=1))


def read_config(folder: Path) -> tuple[ClimbConfig, list[LevelResult]]:
    """What a climb was asked to do, and its finished levels, to go on with it.

    Raises:
        UserError: the file is damaged or of another format.
    """
    path = folder / NAME
    try:
        content = _read(path)
        results = content["results"]
        for result in results:
            result["dataset"]  # a result without one is none
        return _config(content), results
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; move the folder away and climb anew") from None


def read_climb(folder: Path) -> Climb | None:
    """The climb of a folder; None where there is none.

    Raises:
        UserError: the file is damaged or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = _read(path)
        config = _config(content)
        results = tuple(content["results"])
        for result in results:
            stage = result.get("preferred")
            if stage and not {"run", "after", "longer"} <= stage.keys():
                raise ValueError("preferred: expected run, after, longer")
            if any(len(pair) != 2 for pair in (result.get("grown") or {}).values()):
                raise ValueError("grown: expected [before, after]")
        matrix = _matrix(results)
        transfer, step = backward_transfer(matrix), _next_step(config, results, folder)
        return Climb(tuple(config.levels), config.rehearsal_share, results, matrix, transfer, step)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a climb that can be read ({error!r})") from None


def _config(content: Mapping[str, Any]) -> ClimbConfig:
    known = (item.name for item in fields(ClimbConfig))
    return ClimbConfig(**{name: content[name] for name in known if name in content})


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = (content["format"], content["version"])
    if kind != (FORMAT, VERSION):
        raise ValueError(f"{kind[0]} version {kind[1]}, expected {FORMAT} version {VERSION}")
    return content


def _matrix(results: Sequence[LevelResult]) -> Matrix:
    scores = [
        {name: found["bpb"] for name, found in result["evaluations"].items()} for result in results
    ]
    return forgetting_matrix([result["dataset"] for result in results], scores)


def _next_step(
    config: ClimbConfig, results: Sequence[LevelResult], folder: Path
) -> NextStep | None:
    levels, settings = config.levels, config.settings
    if len(results) < len(levels):
        command = replace(config, out=str(folder)).command("--resume")
        return NextStep(GO_ON, command, levels[len(results)])
    length = next((name for name in ("minutes", "epochs") if name in settings), None)
    if length is None or all(result.get("status") != "not cleared" for result in results):
        return None
    twice = {**settings, length: 2 * settings[length]}
    longer = replace(config, settings=twice, out=f"{folder}_longer")
    return NextStep(AGAIN, longer.command(), levels[0])
