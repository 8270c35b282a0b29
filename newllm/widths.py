"""Widths that go with a depth and a context size."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

ONE_WIDTH = frozenset({"gru", "lstm"})
"""Architectures whose state has to be as wide as the stream; `hidden_dim` does nothing there."""

EQUAL_WIDTHS = ONE_WIDTH | {"transformer"}
"""Architectures whose state, or attention, is as wide as the stream unless told otherwise."""

PAIR_ROWS = 128
"""Rows of the table of pairs of `context`, for each number of its context vector."""


def default_widths(num_layers: int, context_dim: int, pairs: bool = False) -> dict[str, int]:
    """Width of stream and feed-forward that go with a depth and a context size.

    At context 256 and the 1,000-word vocabulary they keep the parameters at or under those of
    `original`: 1.37M of 1.43M with 1 layer, 2.10M of 2.21M with 4. A single layer is wider, for
    want of depth, unless a table of pairs (`pairs`) has those parameters; beyond context 256 the
    stream grows with the square root of the context.
    """
    embed_dim = context_dim
    if context_dim > 256:
        embed_dim = 64 * math.ceil(math.sqrt(256 * context_dim) / 64)
    if num_layers > 1:
        return {"embed_dim": embed_dim, "hidden_dim": embed_dim + embed_dim // 2}
    embed_dim += 0 if pairs else embed_dim // 2
    return {"embed_dim": embed_dim, "hidden_dim": 2 * embed_dim}


def equal_widths(num_layers: int, width: int) -> dict[str, int]:
    """The same where `context_dim` and the stream have one width (see `EQUAL_WIDTHS`)."""
    hidden_dim = 2 * width if num_layers == 1 else width + width // 2
    return {"context_dim": width, "embed_dim": width, "hidden_dim": hidden_dim}


def largest(holds: Callable[[int], bool]) -> int:
    """The largest number for which a condition holds that holds up to some number, or 0."""
    step = 1
    while holds(step):
        step *= 2
    return bisect.bisect_left(range(step), True, lo=1, key=lambda number: not holds(number)) - 1
