"""`newllm compare`: one training for each combination of swept settings, and what they reach.

The published experiment is of this kind: 1, 4, 5, 6 and 7 layers on one data set. Each run is an
ordinary training that can be interrupted and goes on; one that is finished is not run again.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config import WITHOUT_EFFECT_ON_WEIGHTS, Settings, option_name, parse
from newllm.errors import Stopped, UserError
from newllm.files import previous_path
from newllm.report.comparison import Comparison, write_comparison
from newllm.results.runs import RunFiles
from newllm.results.summary import Summary, load_summary
from newllm.settings import resolve
from newllm.train.distributed import refuse_several
from newllm.train.run import shape_of, train

IN_THE_NAME = frozenset({"dataset", "subset", "num_layers", "architecture", "tokenizer"})
"""Settings that a run's name carries anyway."""


@dataclass(frozen=True)
class Variant:
    """One combination of swept values."""

    swept: Mapping[str, Any]
    settings: Settings

    @property
    def words(self) -> str:
        """`--num-layers 4`, as on the command line."""
        return " ".join(f"{option_name(name)} {value}" for name, value in self.swept.items())


def compare(
    dataset: str,
    sweeps: Mapping[str, Sequence[Any]],
    single: Mapping[str, Any],
    params: int | None = None,
    note: Callable[[str], None] = print,
) -> Comparison:
    """Train every combination, and rewrite the report after each.

    Args:
        sweeps: setting -> the values to compare; one value is simply the setting.
        single: further settings.
        params: size of every model; see :func:`newllm.settings.resolve`.

    Raises:
        UserError: a value is wrong, or a run of the same name was made with other settings.
        Stopped: a signal came; everything is saved, and the same command goes on.
    """
    refuse_several("compare")
    variants = plan(dataset, sweeps, single, params)
    swept = [name for name, values in sweeps.items() if len(values) > 1]
    folder = Path(variants[0].settings.out)
    comparison = Comparison(dataset, tuple(swept), ())
    for number, variant in enumerate(variants, start=1):
        note(f"\nRun {number} of {len(variants)}: {variant.words or dataset}")
        summary = finished(variant)
        if summary is None:
            summary = _train(dataset, variant)
        else:
            note("Finished before.")
        comparison = comparison.with_run(summary)
        write_comparison(folder, comparison)
    return comparison


def plan(
    dataset: str,
    sweeps: Mapping[str, Sequence[Any]],
    single: Mapping[str, Any],
    params: int | None = None,
) -> list[Variant]:
    """The grid of all swept values, in the order they were given, each with a name of its own.

    Raises:
        UserError: a value is wrong (every one is tried before any training), or given twice.
    """
    for name, values in sweeps.items():
        for value in values:
            if list(values).count(value) > 1:
                raise UserError(f"{option_name(name)} {value}: given twice")
    fixed = {name: values[0] for name, values in sweeps.items() if len(values) == 1}
    grid = {name: values for name, values in sweeps.items() if len(values) > 1}
    variants = []
    for values in itertools.product(*grid.values()):
        swept = dict(zip(grid, values, strict=True))
        given = {**single, **fixed, **swept}
        if params is None and given.get("init_from") is not None:
            given = {**shape_of(given["init_from"], given.get("architecture")), **given}
        settings = resolve(dataset, given, params=params)
        parts = [
            f"_{name}{re.sub(r'[^A-Za-z0-9.-]+', '-', str(value))}"
            for name, value in swept.items()
            if name not in IN_THE_NAME
        ]
        settings = settings.model_copy(update={"name": settings.run_name + "".join(parts)})
        variants.append(Variant(swept, settings))
    names = [variant.settings.run_name for variant in variants]
    double = {name for name in names if names.count(name) > 1}
    if double:  # --data a/x b-x
        raise UserError(f"{sorted(double)[0]}: two runs would have this name; compare them apart")
    return variants


def finished(variant: Variant) -> Summary | None:
    """What an earlier run of these settings left; None where there is none.

    Raises:
        UserError: the run of this name was made with other settings.
    """
    settings = variant.settings
    path = RunFiles(Path(settings.out), settings.run_name).summary
    if not path.exists():
        return None
    summary = load_summary(path)
    before = parse(summary.settings).model_dump()  # with defaults for what is newer
    changed = [
        f"{option_name(name)} {before[name]} -> {value}"
        for name, value in settings.model_dump().items()
        if name not in WITHOUT_EFFECT_ON_WEIGHTS and before[name] != value
    ]
    if changed:
        raise UserError(
            f"{path.parent / summary.run}: this run was made with other settings "
            f"({'; '.join(changed)}); compare in another --out"
        )
    # Rows at another place: the training itself knows whether they are the same.
    return summary if summary.settings.get("data") == settings.data else None


def _train(dataset: str, variant: Variant) -> Summary:
    settings = variant.settings
    files = RunFiles(Path(settings.out), settings.run_name)
    begun = files.resume.exists() or previous_path(files.resume).exists()
    flags = settings.model_dump(exclude={"dataset"}, exclude_none=True)
    try:
        train(dataset, flags, resume=begun)
    except Stopped as stop:
        command = shlex.join(["newllm", *sys.argv[1:]])
        raise Stopped(stop.exit_code, f"Stopped; to go on: {command}") from None
    return load_summary(files.summary)
