"""How large a model should be for the time it has, and what it can be expected to reach.

A larger model learns more of each token and reads fewer of them in the same time. `expected_bpb`
says what comes of both:

    bits per byte = scale * (floor + A (N / 1M)^-0.3 + B (D / 1M)^-0.3)

with N parameters and D tokens (Hoffmann et al. 2022, arXiv:2203.15556, whose exponents are 0.34 and
0.28). Floor, A and B were fitted on runs of Dolly; every other data set has a scale. `newllm bench
sizes` makes such runs and the fit (docs/LOG.md, "the right size"). Tokens that are read again count
less and less (`worth`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_chosen
from newllm.errors import UserError
from newllm.planning.speed import timed_step
from newllm.results.records import size_text
from newllm.results.runs import RunFiles
from newllm.settings import SHAPE, resolve

FLOOR, A, B, EXPONENT = 1.128, 0.136, 0.205, 0.3

SCALES = {"dolly": 1.0, "hh_rlhf": 0.981, "ultrachat": 0.989, "code_alpaca": 0.489, "math": 0.730}
"""By data set: those that were measured."""

REPEATS = 15.4
"""Times after which reading the same tokens once more is worth 1/e of the first time: R* of
Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", arXiv:2305.16264."""

SPREAD = 0.03
"""Share by which a run may be off what is expected."""

SMALLEST, LARGEST = 500_000, 100_000_000
"""Sizes that are considered."""

SMALL_VOCABULARY, VOCABULARY, SMALL = 2048, 4096, 2_000_000
"""Entries of the vocabulary of models smaller than `SMALL`, and of others."""

PROBES = (1_000_000, 3_000_000)
"""Sizes whose steps are timed: the time of a step is taken for linear in the parameters."""

RATES = ((1_000_000, 0.008), (2_000_000, 0.006), (4_000_000, 0.005), (LARGEST, 0.004))
"""Learning rates of runs of minutes, up to these sizes."""

_TIMED_STEPS = 5
_ROWS, _LENGTH = 32, 128
STEP_TOKENS = _ROWS * _LENGTH
"""Of a step, as in training by default."""

_STEPS_BETWEEN_SIZES = 12
"""Sizes that are considered in each factor of ten."""


@dataclass(frozen=True)
class Choice:
    """A size for a time, and why."""

    parameters: int
    vocab_size: int
    tokens: int
    """That it will read."""
    step_seconds: float
    expected: tuple[float, float, float] | None
    """Bits per byte: the least, the likeliest, the most; None for data that was never measured."""


def expected_bpb(dataset: str, parameters: float, tokens: float) -> float | None:
    """Bits per byte after so many tokens of a level's rows; None where nothing was measured."""
    scale = SCALES.get(dataset)
    return None if scale is None else scale * (FLOOR + excess(parameters, tokens))


def excess(parameters: float, tokens: float) -> float:
    """What is above the floor."""
    return A * (parameters / 1e6) ** -EXPONENT + B * (tokens / 1e6) ** -EXPONENT


def worth(tokens: float, different: float | None) -> float:
    """So many tokens as if none had been read twice, of which so many are different."""
    if different is None or tokens <= different:
        return tokens
    again = tokens / different - 1
    return different * (1 + REPEATS * (1 - math.exp(-again / REPEATS)))


def choose_size(
    dataset: str,
    minutes: float | None,
    step_seconds: Callable[[int], float],
    vocab_size: int | None = None,
    different: float | None = None,
    most: float = math.inf,
) -> Choice:
    """The size that is expected to learn most in so many minutes.

    Where `most` tokens end the training it is the largest size that would also be chosen for the
    time which they take: a larger one should read more.

    Args:
        dataset: name of the data set.
        minutes: of training, or None.
        step_seconds: of a step of 32 x 128 tokens, by parameters; see :func:`measured_steps`.
        vocab_size: of the vocabulary, where it is given.
        different: tokens of the rows, which are then read again; None: there are always others.
            They change what is expected, not the size: by the law a larger model would make more of
            them, but it would memorise them.
        most: tokens that are read at most.
    """
    decades = math.log10(LARGEST / SMALLEST)
    count = round(decades * _STEPS_BETWEEN_SIZES)
    sizes = [round(SMALLEST * 10 ** (decades * i / count), -4) for i in range(count + 1)]

    def read_in(size: float, minutes: float) -> float:
        return 60 * minutes / step_seconds(round(size)) * STEP_TOKENS

    def best_in(minutes: float) -> float:
        return min(sizes, key=lambda size: excess(size, read_in(size, minutes)))

    times = {size: most / STEP_TOKENS * step_seconds(round(size)) / 60 for size in sizes}
    size = max((size for size, time in times.items() if best_in(time) >= size), default=sizes[0])
    if minutes is not None:
        size = min(size, best_in(minutes))
    best = round(size)
    read = most if minutes is None else min(most, read_in(best, minutes))
    likely = expected_bpb(dataset, best, worth(read, different))
    return Choice(
        parameters=best,
        vocab_size=vocab_size or (SMALL_VOCABULARY if best < SMALL else VOCABULARY),
        tokens=round(read),
        step_seconds=step_seconds(best),
        expected=None if likely is None else ((1 - SPREAD) * likely, likely, (1 + SPREAD) * likely),
    )


def rate_of(parameters: int) -> float:
    """Learning rate that suits a size in minutes of training."""
    return next(rate for most, rate in RATES if parameters <= most)


def measured_steps(dataset: str, given: Mapping[str, Any]) -> Callable[[int], float]:
    """Seconds of a training step on this machine by parameters, from two sizes that are timed.

    Args:
        dataset: name of the data set.
        given: settings of the training, such as its architecture.
    """
    steps = []
    for size in PROBES:
        flags = {"vocab_size": SMALL_VOCABULARY if size < SMALL else VOCABULARY, **given}
        steps.append(timed_step(resolve(dataset, flags, params=size), _ROWS, _LENGTH))
        steps[-1]()  # pays for compiling
    # In turns, so that what else the machine does meets both.
    rounds = [[sum(step()) for step in steps] for _ in range(_TIMED_STEPS)]
    times = [min(times) for times in zip(*rounds, strict=True)]
    slope = max(0.0, (times[1] - times[0]) / (PROBES[1] - PROBES[0]))
    fixed = max(0.0, times[0] - slope * PROBES[0])
    return lambda parameters: fixed + slope * parameters


def fitted(
    dataset: str,
    flags: Mapping[str, Any],
    file: Mapping[str, Any],
    resume: bool,
    note: Callable[[str], None],
) -> tuple[dict[str, Any], int | None]:
    """Settings of a training with `--params auto`, and its size.

    The run has `auto` in its name where others have their depth, so that --resume finds it whatever
    is measured then; a run that goes on keeps its size (None).

    Raises:
        UserError: neither minutes nor epochs were given; or the rows cannot be read.
    """
    given = {**file, **flags}
    if given.get("minutes") is None and given.get("epochs") is None:
        raise UserError(
            "--params auto: say how long training may take, with --minutes, or with --epochs"
        )
    settings = resolve(dataset, flags, file)
    usual = settings.model_copy(update={"name": None}).run_name
    auto = usual.replace(f"_layers{settings.num_layers}", "_auto", 1)
    named = {**flags, "name": given.get("name") or auto}
    if resume and RunFiles(Path(settings.out), named["name"]).resume.exists():
        return named, None
    resolve(dataset, flags, file, params=PROBES[0])  # refuses what sets the size as well
    kept = ("architecture", "tokenizer", "vocab_size", "recall_slots", "counts", "num_layers")
    shape = {name: given[name] for name in kept if name in given}
    encoded = prepare_training(open_chosen(settings), Encoding.of(settings))
    different = encoded.accounting["train"].tokens
    choice = choose_size(
        dataset,
        settings.minutes,
        measured_steps(dataset, shape),
        given.get("vocab_size"),
        different,
        math.inf if given.get("epochs") is None else settings.epochs * different,
    )
    note(describe(choice, settings.counts, dataset))
    decided = {"vocab_size": choice.vocab_size, "learning_rate": rate_of(choice.parameters)}
    return {**decided, **given, **named}, choice.parameters


def fitted_to_climb(
    levels: Sequence[str], given: Mapping[str, Any], note: Callable[[str], None]
) -> dict[str, Any]:
    """Settings of a climb with one size for all levels.

    What a level teaches helps the next in part: the size is that for a time between a level's and
    all levels' together (their geometric mean).
    """
    first = levels[0]
    counts = resolve(first, given).counts  # refuses what no training takes, no time at all, say
    minutes = given["minutes"] * math.sqrt(len(levels))
    choice = choose_size(first, minutes, measured_steps(first, {}), given.get("vocab_size"))
    steps = 60 * given["minutes"] * len(levels) / choice.step_seconds
    note(describe(replace(choice, tokens=round(steps * STEP_TOKENS)), counts))
    decided = {"vocab_size": choice.vocab_size, "learning_rate": rate_of(choice.parameters)}
    settings = resolve(first, {**decided, **given}, params=choice.parameters)
    return {**decided, **settings.model_dump(include=set(SHAPE)), **given}


def describe(choice: Choice, counts: int, dataset: str | None = None) -> str:
    """The choice in a line, and what to expect of the rows of a data set in another.

    `counts` are the bytes that the table of counts may take.
    """
    size = size_text(choice.parameters, counts, before=True)
    seconds, tokens = f"{choice.step_seconds:.2f}", f"{choice.tokens:,}"
    lines = [f"Size   {size}: a step takes {seconds} s here, {tokens} tokens are read"]
    if dataset is not None and choice.expected is not None:
        least, likely, most = choice.expected
        lines.append(
            f"       expected on the real rows of {dataset}: {likely:.2f} bits per byte "
            f"({least:.2f} to {most:.2f})"
        )
    return "\n".join(lines)
