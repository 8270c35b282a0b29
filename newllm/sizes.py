"""The one dial, a number of parameters, and the depth and widths that go with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm.config import Settings, option_name
from newllm.data.tokenizers import Word1000, load_tokenizer
from newllm.errors import UserError
from newllm.model import count_parameters
from newllm.recipes import resolve
from newllm.widths import ONE_WIDTH, largest

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Blocks that are considered where no number of them is given."""

WIDTH_PER_LAYER = 64
"""Stream numbers a block, about: what most published language models have."""

WIDTH_STEP = 16
"""Widths are multiples of it."""

WIDEST = 1023 * WIDTH_STEP

_SHAPE = ("num_layers", "context_dim", "embed_dim", "hidden_dim", "pair_rows")

_ANY_LEVEL = "ultrachat"
"""Widths follow from depth, context and vocabulary, whatever the level."""

_Known = tuple[tuple[str, Any], ...]
"""Architecture and vocabulary."""


def shape_of_size(
    parameters: int, given: Mapping[str, Any], file: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Depth and widths of a model of at most so many parameters, in the default proportions.

    The depth is the one whose stream is nearest to 64 numbers a block, unless it is given. What
    the next wider stream would be too much for goes into the feed-forward, up to twice its
    default width.

    Args:
        parameters: the most it may have.
        given: settings chosen besides: architecture, vocabulary and depth matter.
        file: settings of a YAML file, whose depth and widths the size replaces.

    Returns:
        num_layers, context_dim, embed_dim, hidden_dim and pair_rows.

    Raises:
        UserError: a width is given as well, a setting is wrong, or no shape has so few or so many
            parameters.
    """
    file = {name: value for name, value in (file or {}).items() if name not in _SHAPE}
    given = {name: value for name, value in given.items() if value is not None}
    both = {**file, **given}
    for name in (*_SHAPE[1:], "init_from"):
        if both.get(name) is not None:
            raise UserError(
                f"--params {parameters:,} and {option_name(name)} {both[name]}: both decide how "
                "wide the model is; give one of the two"
            )
    if both.get("architecture") == "original":
        raise UserError("--params: original has its published widths; choose --num-layers instead")
    settings = resolve(_ANY_LEVEL, given, file)  # says what is wrong with the others
    vocabulary = _vocabulary(settings)
    known: _Known = (
        ("architecture", settings.architecture),
        ("tokenizer", settings.tokenizer),
        ("vocab_size", vocabulary),
    )
    depths = (settings.num_layers,) if "num_layers" in given else DEPTHS
    fitting = {depth: width for depth in depths if (width := _widest(parameters, depth, known))}
    if not fitting:
        raise UserError(
            f"--params {parameters:,}: no model of {depths[0]} layer(s) with a vocabulary of "
            f"{vocabulary:,} is so small; change --params, --vocab-size or --num-layers"
        )
    if set(fitting.values()) == {WIDEST}:
        most = _count(_shape(max(fitting), WIDEST, known))
        raise UserError(
            f"--params {parameters:,}: the largest model of at most {max(fitting)} layer(s) has "
            f"{most:,} parameters"
        )
    shapes = [_shape(depth, width, known) for depth, width in fitting.items()]
    best = min(shapes, key=lambda s: abs(math.log(s.embed_dim / (WIDTH_PER_LAYER * s.num_layers))))
    best = _filled(best, parameters)
    return {name: getattr(best, name) for name in _SHAPE}


def _widest(parameters: int, num_layers: int, known: _Known) -> int:
    """The largest context of a depth within the budget, 0 without any."""

    def fits(steps: int) -> bool:
        width = WIDTH_STEP * steps
        return width <= WIDEST and _stacked(num_layers, width, known) <= parameters

    return WIDTH_STEP * largest(fits)


def _filled(shape: Settings, parameters: int) -> Settings:
    """With a feed-forward as wide as the budget allows, and no more than twice as wide."""
    if shape.architecture in ONE_WIDTH:
        return shape
    one_more = shape.model_copy(update={"hidden_dim": shape.hidden_dim + 8})
    spare = (parameters - _count(shape)) // (_count(one_more) - _count(shape))
    hidden_dim = min(shape.hidden_dim + 8 * spare, 2 * shape.hidden_dim)
    return shape.model_copy(update={"hidden_dim": hidden_dim})


def _shape(num_layers: int, context_dim: int, known: _Known) -> Settings:
    return resolve(
        _ANY_LEVEL, {**dict(known), "num_layers": num_layers, "context_dim": context_dim}
    )


def _vocabulary(settings: Settings) -> int:
    if settings.tokenizer_file is not None:
        return load_tokenizer(Path(settings.tokenizer_file)).vocab_size
    return Word1000.size if settings.tokenizer == "word1000" else settings.vocab_size


def _count(shape: Settings) -> int:
    return count_parameters(shape.model_settings(), shape.vocab_size)


@functools.cache
def _stacked(num_layers: int, context_dim: int, known: _Known) -> int:
    """Parameters of a shape; of deep ones from those of two and three blocks."""
    if num_layers > 3:
        two, three = (_stacked(layers, context_dim, known) for layers in (2, 3))
        return two + (num_layers - 2) * (three - two)
    return _count(_shape(num_layers, context_dim, known))
