"""The one dial, a number of parameters, and the depth and widths that go with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from newllm.config import Settings, option_name
from newllm.data.tokenizers import Word1000
from newllm.errors import UserError
from newllm.model import count_parameters
from newllm.recipes import resolve

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Blocks that are considered where no number of them is given."""

WIDTH_PER_LAYER = 64
"""Stream numbers a block, about: what most published language models have."""

_NEAR = 0.7
"""Of the parameters asked for, a shape that has so many will do."""

_SHAPE = ("num_layers", "context_dim", "embed_dim", "hidden_dim", "pair_rows")

_ANY_LEVEL = "ultrachat"
"""Widths follow from depth, context and vocabulary, whatever the level."""


def shape_of_size(
    parameters: int, given: Mapping[str, Any], file: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Depth and widths of a model of at most so many parameters, in the default proportions.

    The depth is the one whose stream is nearest to 64 numbers a block, unless it is given.

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
    given = {**{name: value for name, value in (file or {}).items() if name not in _SHAPE}, **given}
    for name in (*_SHAPE[1:], "init_from"):
        if given.get(name) is not None:
            raise UserError(
                f"--params {parameters:,} and {option_name(name)} {given[name]}: both decide how "
                "wide the model is; give one of the two"
            )
    if given.get("architecture") == "original":
        raise UserError("--params: original has its published widths; choose --num-layers instead")
    kept = ("architecture", "tokenizer", "vocab_size", "num_layers")
    known = tuple((name, given[name]) for name in kept if given.get(name) is not None)
    depths = (given["num_layers"],) if given.get("num_layers") else DEPTHS
    shapes = [shape for depth in depths if (shape := _widest(parameters, depth, known))]
    counts = [_count(shape.num_layers, shape.context_dim, known) for shape in shapes]
    if not shapes:
        raise UserError(
            f"--params {parameters:,}: no model of {depths[0]} layer(s) with a vocabulary of "
            f"{_vocabulary(_shape(1, 32, known)):,} is so small; change --params, --vocab-size or "
            "--num-layers"
        )
    near = [
        shape for shape, count in zip(shapes, counts, strict=True) if count > _NEAR * parameters
    ]
    if not near:
        raise UserError(
            f"--params {parameters:,}: the largest model of at most {depths[-1]} layer(s) has "
            f"{max(counts):,} parameters"
        )
    best = min(near, key=lambda s: abs(math.log(s.embed_dim / (WIDTH_PER_LAYER * s.num_layers))))
    return {name: getattr(best, name) for name in _SHAPE}


_Known = tuple[tuple[str, Any], ...]


def _widest(parameters: int, num_layers: int, known: _Known) -> Settings | None:
    """The widest shape of a depth within the budget, its context a multiple of 32."""
    fitting = 0
    step = 256  # halved each time: up to 511 of them, which is a context of 16,352
    while step:
        if _count(num_layers, 32 * (fitting + step), known) <= parameters:
            fitting += step
        step //= 2
    return _shape(num_layers, 32 * fitting, known) if fitting else None


def _shape(num_layers: int, context_dim: int, known: _Known) -> Settings:
    return resolve(
        _ANY_LEVEL, {**dict(known), "num_layers": num_layers, "context_dim": context_dim}
    )


def _vocabulary(settings: Settings) -> int:
    return Word1000.size if settings.tokenizer == "word1000" else settings.vocab_size


@functools.cache
def _count(num_layers: int, context_dim: int, known: _Known) -> int:
    """Parameters of a shape; of deep ones from those of two and three blocks."""
    if num_layers > 3:
        two, three = (_count(layers, context_dim, known) for layers in (2, 3))
        return two + (num_layers - 2) * (three - two)
    shape = _shape(num_layers, context_dim, known)
    return count_parameters(shape.model_settings(), _vocabulary(shape))
