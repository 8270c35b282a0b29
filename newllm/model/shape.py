"""From a budget of parameters to a depth and widths: `--params`, and models of equal size.

Both searches are one: parameters rise with the width, so the widest model that fits is found by
bisection, and what is left of the budget goes into the feed-forward.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from functools import cache

from newllm.config import ModelSettings
from newllm.errors import UserError
from newllm.model.build import count_parameters
from newllm.model.context.lm import PAIR_DIM
from newllm.model.own_block import OwnBlock
from newllm.model.spec import ModelSpec, find_spec

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Blocks that are considered where no number of them is given."""

WIDTH_PER_LAYER = 64
"""Stream numbers a block, about: what most published language models have."""

WIDTH_STEP = 16
"""Widths are multiples of it; those of a GRU or an LSTM, which have nothing else to fill a budget
with, of 8."""

WIDEST = 1023 * WIDTH_STEP

PAIR_SHARE = 0.375
"""Fraction of a budget that a bigram hash embedding takes in `matched_widths`: found with 1.4M."""


def shape_of_size(
    parameters: int,
    spec: ModelSpec,
    vocab_size: int,
    tokenizer: str = "bpe",
    num_layers: int | None = None,
    block: OwnBlock | None = None,
    recall_slots: int = 0,
    counts: int = 0,
) -> ModelSettings:
    """The shape of a model of at most so many parameters, in the default proportions.

    The depth is the one whose stream is nearest to 64 numbers a block, unless it is given. What
    the next wider stream would be too much for goes into the feed-forward, up to twice its
    default width.

    Args:
        parameters: the most it may have.
        spec: the architecture.
        vocab_size: V.
        tokenizer: kind of the vocabulary; a bigram hash embedding goes with some.
        num_layers: the depth, or None to choose it.
        block: a block of one's own, loaded.
        recall_slots: of the model.
        counts: bytes of its table of counts, which are no parameters; those of its trust are.

    Raises:
        UserError: no shape has so few or so many parameters.
    """

    def shape(layers: int, width: int) -> ModelSettings:
        pair_rows = spec.default_pair_rows(width, tokenizer)
        widths = spec.proportions(layers, width, pair_rows > 0, recall_slots > 0)
        return ModelSettings(
            architecture=spec.name,
            num_layers=layers,
            pair_rows=pair_rows,
            recall_slots=recall_slots,
            counts=counts,
            **widths,
        )

    def count(shape: ModelSettings) -> int:
        return _count(shape, vocab_size, block)  # type: ignore[arg-type]  # it is frozen

    def count_stack(layers: int, width: int) -> int:
        """Parameters of a shape; of deep ones from those of two and three blocks."""
        if layers > 3:
            two, three = count_stack(2, width), count_stack(3, width)
            return two + (layers - 2) * (three - two)
        return count(shape(layers, width))

    def widest(layers: int) -> int:
        """The largest context of a depth within the budget, 0 without any."""
        step = math.lcm(8 if spec.widths == "one" else WIDTH_STEP, spec.heads_of)
        most = WIDEST // step
        return step * largest(
            lambda steps: steps <= most and count_stack(layers, step * steps) <= parameters
        )

    depths = (num_layers,) if num_layers is not None else DEPTHS
    fitting = {depth: width for depth in depths if (width := widest(depth))}
    if not fitting:
        raise UserError(
            f"--params {parameters:,}: no model of {depths[0]} layer(s) with a vocabulary of "
            f"{vocab_size:,} is so small; change --params, --vocab-size or --num-layers"
        )
    if set(fitting.values()) == {WIDEST}:
        most = count(shape(max(fitting), WIDEST))
        raise UserError(
            f"--params {parameters:,}: the largest model of at most {max(fitting)} layer(s) has "
            f"{most:,} parameters"
        )
    shapes = [shape(depth, width) for depth, width in fitting.items()]
    best = min(shapes, key=lambda s: abs(math.log(s.embed_dim / (WIDTH_PER_LAYER * s.num_layers))))
    if spec.widths == "one":
        return best
    return _filled(best, count, parameters, 2 * best.hidden_dim)


def matched_widths(
    architecture: str,
    num_layers: int,
    vocab_size: int,
    parameters: int,
    pairs: bool = False,
    recall_slots: int = 0,
    counts: int = 0,
) -> dict[str, int]:
    """The widest shape of an architecture and depth with at most so many parameters.

    The proportions are those of the architecture's spec. The width is a multiple of 32, and what is
    left goes into the feed-forward. GRU, LSTM and `original` (in its published proportions) have
    none inside a block, so that their width is a multiple of 8.

    Args:
        architecture: name of the architecture.
        num_layers: depth.
        vocab_size: V.
        parameters: budget.
        pairs: give `PAIR_SHARE` of it to a bigram hash embedding (`context` alone has one).
        recall_slots: of the model, if the architecture can have recall.
        counts: bytes of its table of counts, likewise.

    Returns:
        context_dim, embed_dim and hidden_dim; with `pairs` also pair_rows, with recall its slots.

    Raises:
        UserError: not even the smallest shape has so few.
    """
    spec = find_spec(architecture)
    table = {}
    if pairs and spec.has_pairs:
        table["pair_rows"] = 256 * round(PAIR_SHARE * parameters / (256 * PAIR_DIM))
    if recall_slots and spec.has_recall:
        table["recall_slots"] = recall_slots
    if counts and spec.has_counts:
        table["counts"] = counts
    stepped = spec.widths in ("one", "published")

    def shape(steps: int) -> ModelSettings:
        widths = spec.proportions(
            num_layers, (8 if stepped else 32) * steps, pairs, recall_slots > 0
        )
        return ModelSettings(architecture=spec.name, num_layers=num_layers, **table, **widths)

    def count(shape: ModelSettings) -> int:
        return _count(shape, vocab_size)  # type: ignore[arg-type]  # it is frozen

    steps = largest(lambda steps: count(shape(steps)) <= parameters)
    if steps == 0:
        raise UserError(
            f"{architecture} with {num_layers} layers has more than {parameters:,} parameters"
        )
    found = shape(steps) if stepped else _filled(shape(steps), count, parameters)
    return found.model_dump(include={"context_dim", "embed_dim", "hidden_dim", *table})


@cache
def _count(shape: ModelSettings, vocab_size: int, block: OwnBlock | None = None) -> int:
    """`count_parameters`, which takes milliseconds; a search asks for some shapes again."""
    return count_parameters(shape, vocab_size, block)


def _filled(
    shape: ModelSettings,
    count: Callable[[ModelSettings], int],
    parameters: int,
    most: int | None = None,
) -> ModelSettings:
    """With a feed-forward as wide as the budget allows, in steps of 8, and no wider than `most`."""
    used = count(shape)
    eight = count(shape.model_copy(update={"hidden_dim": shape.hidden_dim + 8})) - used
    if eight == 0:  # a block of one's own without a feed-forward
        return shape
    hidden_dim = shape.hidden_dim + 8 * ((parameters - used) // eight)
    return shape.model_copy(update={"hidden_dim": min(hidden_dim, most or hidden_dim)})


def largest(holds: Callable[[int], bool]) -> int:
    """The largest number for which a condition holds that holds up to some number, or 0."""
    step = 1
    while holds(step):
        step *= 2
    return bisect.bisect_left(range(step), True, lo=1, key=lambda number: not holds(number)) - 1
