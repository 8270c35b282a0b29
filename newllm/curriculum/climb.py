"""One model climbs the levels: trained on each, grown where a level asks for it, rehearsing.

After every level all levels so far are scored, which gives the forgetting matrix. `climb.json` in
the folder of the runs says how far the climb is; it is replaced when a level is done, and the level
in progress has its own resume file, so that a climb can be stopped anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm.config import WITHOUT_EFFECT_ON_WEIGHTS, option_name, read_yaml
from newllm.curriculum.grow import grow_file
from newllm.data.prepare import train_joint_tokenizer
from newllm.data.sources import Source, open_source
from newllm.data.tokenizers import save_tokenizer
from newllm.datasets import DATASETS, find_dataset
from newllm.datasets.base import Dataset
from newllm.errors import UserError, did_you_mean
from newllm.evaluate.metrics import evaluate
from newllm.evaluate.skills import require_skills
from newllm.model.spec import default_widths
from newllm.results.climb import NAME, TOKENIZER, ClimbConfig, LevelResult, read_config, write_climb
from newllm.results.records import EpochRecord, Metrics
from newllm.results.runs import RunFiles
from newllm.results.stages import read_preferences
from newllm.results.summary import load_summary
from newllm.settings import resolve
from newllm.train.distributed import refuse_several
from newllm.train.prefer import prefer
from newllm.train.preference_loss import Preferring
from newllm.train.run import shape_of, train
from newllm.train.signals import run_lock
from newllm.trained import TrainedModel

PAIRS = "hh_rlhf"
"""The level whose rows are pairs of answers."""

MAX_ROUNDS = 5
"""Trainings of one level at most, with --until-cleared."""

REHEARSAL_LAST = 0.5
"""Part of the rehearsal that is of the level just before: it is forgotten first (docs/LOG.md)."""


def named_levels(names: Sequence[str]) -> list[str]:
    """Data sets of levels given by number or name, in the order of their numbers.

    Raises:
        UserError: an unknown one, or one twice.
    """
    by_number = {
        str(level.number): name for name, level in DATASETS.items() if level.number is not None
    }
    chosen = []
    for name in names:
        dataset = by_number.get(name, name.replace("-", "_"))
        if dataset not in by_number.values():
            known = [*by_number, *by_number.values()]
            raise UserError(f"--levels {name}: no such level{did_you_mean(name, known)}")
        if dataset in chosen:
            raise UserError(f"--levels {name}: named twice")
        chosen.append(dataset)
    return sorted(chosen, key=list(DATASETS).index)


def climb(config: ClimbConfig, resume: bool = False, note: Callable[[str], None] = print) -> Path:
    """Train all levels of a climb in turn; returns the path of the last one's best checkpoint.

    With `resume` it goes on where a climb in the same folder stopped.

    Raises:
        UserError: a level without rows, another climb in the folder, a level that is not cleared.
        Stopped: a signal came; everything is saved.
    """
    refuse_several("climb")
    folder = Path(config.out)
    with run_lock(folder, "climb", note):
        if config.skills:
            for dataset in config.levels:
                require_skills(dataset, config.run_code)
        if config.prefer and PAIRS not in config.levels:
            raise UserError(f"--prefer: the pairs are those of {PAIRS}; add it to --levels")
        results = _begin(config, folder, resume, note)
        if not (folder / TOKENIZER).exists():
            train_tokenizer(config, folder / TOKENIZER, note)
        for dataset in config.levels[len(results) :]:
            results.append(LevelRun(config, folder, results, note).train(dataset, resume))
            write_climb(folder, config, results)
            resume = False  # what follows has not begun
    return folder / results[-1]["best"]


def _begin(
    config: ClimbConfig, folder: Path, resume: bool, note: Callable[[str], None]
) -> list[LevelResult]:
    """The finished levels of a climb; none of one that begins."""
    path = folder / NAME
    begun = (folder / TOKENIZER).exists()  # else, say, a level had no rows
    if not path.exists() or not begun:
        if resume:
            note(f"Nothing to resume under {path}; starting afresh.")
        elif begun:
            raise UserError(
                f"{folder / TOKENIZER}: of an earlier climb; go on with --resume, or give another "
                "--out"
            )
        write_climb(folder, config, [])
        return []
    if not resume:
        raise UserError(
            f"{path}: a climb is here already; go on with --resume, or give another --out"
        )
    before, results = read_config(folder)
    same = before.rehearsal_share == config.rehearsal_share
    changed = [] if same else [option_name("rehearsal_share")]
    changed += [] if before.prefer == config.prefer else [option_name("prefer")]
    changed += [
        option_name(name)
        for name in sorted(before.settings.keys() | config.settings.keys())
        if name not in WITHOUT_EFFECT_ON_WEIGHTS
        and before.settings.get(name) != config.settings.get(name)
    ]
    done = [result["dataset"] for result in results]
    if config.levels[: len(done)] != done:
        changed.append("levels")
    if changed:
        raise UserError(
            f"--resume: the climb in {folder} began with other {', '.join(changed)}; leave them as "
            "they were, or give another --out"
        )
    return results


def _source(config: ClimbConfig, dataset: str) -> Source:
    try:
        return open_source(find_dataset(dataset), config.data_of(dataset))
    except UserError as error:
        level = find_dataset(dataset)
        raise UserError(
            f"level {level.number} ({dataset}): {error}; or leave the level out with --levels"
        ) from None


def train_tokenizer(config: ClimbConfig, path: Path, note: Callable[[str], None]) -> None:
    """Write one vocabulary for all levels of a climb.

    Raises:
        UserError: a level without rows.
    """
    sources = {dataset: _source(config, dataset) for dataset in config.levels}
    first = resolve(config.levels[0], config.settings)
    tokenizer, bytes_of_each = train_joint_tokenizer(sources, first.vocab_size)
    save_tokenizer(tokenizer, path)
    note(
        f"Tokenizer: {tokenizer.vocab_size:,} entries from {bytes_of_each:,} bytes of each of "
        f"{len(sources)} levels, {path}"
    )


class LevelRun:
    """The next level of a climb: the model grown for it, trained, scored on all levels so far."""

    def __init__(
        self,
        config: ClimbConfig,
        folder: Path,
        results: Sequence[LevelResult],
        note: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.note = config, folder, note
        self.before = [result["dataset"] for result in results]
        self.start = folder / results[-1]["start_next"] if results else None

    def train(self, dataset: str, resume: bool) -> LevelResult:
        """Train a level and score all so far; its entry in the record."""
        level = find_dataset(dataset)
        self.note(f"\n== Level {level.number}: {level.title}")
        flags, grown = self._flags(level)
        rounds, minutes, first = 1, 0.0, resolve(dataset, flags).run_name
        while True:
            files = RunFiles(self.folder, resolve(dataset, flags).run_name)
            if resume and files.settings.exists():
                flags = _rehearsing_as_begun(flags, read_yaml(files.settings))
            best = train(dataset, flags, resume=resume, advise=False)
            summary = load_summary(files.summary)
            minutes += summary.minutes
            status = summary.verdict.outcome
            if status != "not cleared" or not self.config.until_cleared or rounds == MAX_ROUNDS:
                break
            rounds += 1
            name = f"{files.name}_round{rounds}"  # as versions before 0.2 went on: X_round2_round3
            if not (resume and RunFiles(self.folder, name).settings.exists()):
                name = f"{first}_round{rounds}"
            flags = {**flags, "init_from": str(files.final), "name": name}
            self.note(f"Level {level.number} is not cleared: round {rounds} of {MAX_ROUNDS}")
        if status == "not cleared" and not self.config.keep_going:
            raise UserError(
                f"level {level.number} ({dataset}) is not cleared; with --resume, train it on with "
                "--until-cleared, or climb on as it is with --keep-going"
            )
        run, learnt, preferred = files.name, summary.best, None
        if self.config.prefer and dataset == PAIRS:
            preferred, best, files = self._prefer(files, resume)
            learnt = load_summary(files.summary).best
        # With the optimizer's moments, where the last weights are the best ones.
        last_is_best = preferred or summary.best["epoch"] == summary.epochs
        freshest = files.final if last_is_best else files.best
        model = TrainedModel.load(best, self.config.settings.get("device", "auto"))
        data = self.config.data_of(dataset)
        return {
            "dataset": dataset,
            "run": run,
            "best": best.name,
            "start_next": freshest.name,
            "rounds": rounds,
            "grown": grown,
            "status": status,
            "minutes": minutes,
            "evaluations": self._evaluations(model, dataset, learnt),
            "skills": model.skills(data, dataset, "all", run_code=self.config.run_code)
            if self.config.skills
            else None,
            "preferred": preferred,
        }

    def _prefer(self, level: RunFiles, resume: bool) -> tuple[dict[str, Any], Path, RunFiles]:
        """A run on pairs behind a level's: its verdict, its checkpoint and its files."""
        self.note("\n== Which answers people preferred")
        shared = {"device", "precision", "seed", "minutes", "max_samples", "save_minutes"}
        flags = {name: self.config.settings[name] for name in self.config.settings.keys() & shared}
        flags |= {"data": self.config.data_of(PAIRS), "out": str(self.folder)}
        files = RunFiles(self.folder, f"{level.name}_preferred")
        flags["name"] = files.name
        resume = resume and files.resume.exists()
        best = prefer(str(level.final), Preferring(), flags, resume)
        verdict = read_preferences(files.preferences)
        return {"run": files.name, **verdict}, best, files

    def _flags(self, level: Dataset) -> tuple[dict[str, Any], dict[str, list[int]] | None]:
        """Settings of a level's training, and what grew: name -> [before, after]."""
        flags = {
            **self.config.settings,
            "data": self.config.data_of(level.name),
            "out": str(self.folder),
            "tokenizer": "bpe",
        }
        if self.start is None:
            return {**flags, "tokenizer_file": str(self.folder / TOKENIZER)}, None
        share = self.config.rehearsal_share
        share = level.rehearsal_share if share is None else share
        if share > 0:
            flags["rehearse"] = [f"{name}={self.config.data_of(name)}" for name in self.before]
            flags["rehearsal_share"] = share
            if len(self.before) > 1:
                flags["rehearsal_last"] = REHEARSAL_LAST
        have = shape_of(str(self.start))
        if share > 0:  # what was counted of each level keeps its room in the table
            have["counts"] = have["counts"] // len(self.before) * (len(self.before) + 1)
        want = _recommended(level, have, self.config.settings)
        larger = {name: size for name, size in want.items() if size > have[name]}
        if not larger:
            return {**flags, **have, "init_from": str(self.start)}, None
        grown = self.folder / f"climb_start_{level.name}.pt"
        if not grown.exists():
            grow_file(self.start, grown, larger)
        change = {name: [have[name], size] for name, size in larger.items()}
        words = ", ".join(f"{option_name(n)} {a} -> {b}" for n, (a, b) in change.items())
        self.note(f"Grown without changing what it says: {words}")
        return {**flags, **have, **larger, "init_from": str(grown)}, change

    def _evaluations(
        self, model: TrainedModel, learnt: str, best: EpochRecord
    ) -> dict[str, Metrics]:
        """Metrics of the model on the validation rows of each level so far.

        `best` is what its training found on those of the level just learnt.
        """
        scores = {}
        for dataset in self.before:
            split = model.validation_rows(self.config.data_of(dataset), dataset, "all")
            scores[dataset] = evaluate(model.as_trained, split, model.tokenizer, model.device)
        scores[learnt] = {name: best[name] for name in Metrics.__annotations__ if name in best}
        for dataset, metrics in scores.items():
            self.note(f"  {dataset}: {metrics['bpb']:.4f} bits per byte")
        return scores


def _rehearsing_as_begun(flags: dict[str, Any], begun: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a level with the rehearsal it began with, maybe by an earlier version."""
    names = "rehearsal_share", "rehearsal_last"
    stored = {name: begun[name] for name in names if begun.get(name) is not None}
    return {**{name: value for name, value in flags.items() if name not in names}, **stored}


def _recommended(
    level: Dataset, have: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, int]:
    """Depth and context that a level asks for, unless given for all; the feed-forward with them."""
    sizes = {
        name: given.get(name, level.settings.get(name, have[name]))
        for name in ("num_layers", "context_dim")
    }
    parts = have["pair_rows"] > 0, have["recall_slots"] > 0
    hidden = default_widths(sizes["num_layers"], sizes["context_dim"], *parts)["hidden_dim"]
    return {**sizes, "hidden_dim": given.get("hidden_dim", hidden)}
