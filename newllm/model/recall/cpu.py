"""Recall on a CPU: the same numbers as `reference.py`, in machine code."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.kernels.numerics import kernel, use_torch_threads
from newllm.model.recall.reference import (
    CHECK_UNIT,
    CHECKS,
    HASH_FACTOR,
    HASH_PRIME,
    LONGEST,
    MOST_TIMES,
    OPEN,
    ORDER_UNIT,
    ORDERS,
    TIMES_UNIT,
    WAYS,
)

_ORDER_OF_LENGTH = np.array([ORDERS.index(n) if n in ORDERS else -1 for n in range(LONGEST + 1)])


@numba.njit(inline="always")
def _is_of(slot, check):
    return slot > 0 and slot // CHECK_UNIT == check


@numba.njit(inline="always")
def enter(token, recent):
    """Make a token the last one, [5]."""
    for place in range(len(recent) - 1, 0, -1):
        recent[place] = recent[place - 1]
    recent[0] = token + 1


@numba.njit(inline="always")
def step(token, table, looked_up, recent):
    """One token of one sequence: enter it, then look it up; its match.

    Args:
        token: its id.
        table: [K, S, WAYS], and `looked_up`, which may be the same.
        recent: [5].
    """
    sets = table.shape[1]
    value = np.int64(0)
    for length in range(1, LONGEST + 1):
        if recent[length - 1] == 0:
            break
        value = (value * HASH_FACTOR + recent[length - 1]) % HASH_PRIME
        order = _ORDER_OF_LENGTH[length]
        if order >= 0:
            held, check = table[order, value % sets], value // sets % CHECKS
            way, times = 0, 1
            while way < WAYS - 1 and not _is_of(held[way], check):
                way += 1
            before = np.int64(held[way])
            if _is_of(before, check) and before % TIMES_UNIT == token:
                times = min(before % CHECK_UNIT // TIMES_UNIT + 1, MOST_TIMES)
            for at in range(way, 0, -1):
                held[at] = held[at - 1]
            held[0] = token + TIMES_UNIT * times + CHECK_UNIT * check
    enter(token, recent)
    match = np.int64(0)
    value = np.int64(0)
    for length in range(1, LONGEST + 1):
        if recent[length - 1] == 0:
            break
        value = (value * HASH_FACTOR + recent[length - 1]) % HASH_PRIME
        order = _ORDER_OF_LENGTH[length]
        if order >= 0:
            held, check = looked_up[order, value % sets], value // sets % CHECKS
            for way in range(WAYS):
                if _is_of(held[way], check):
                    match = np.int64(held[way]) % CHECK_UNIT + ORDER_UNIT * order
                    break
    return match


@kernel
def _read(ids, reset, lengths, table, looked_up, recent, matches, opens, closes):
    for b in numba.prange(ids.shape[0]):
        # Contiguous copies: a sequence's slots lie far apart.
        own, last = table[:, b].copy(), recent[:, b].copy()
        answering = looked_up.shape[0] > 0 and looked_up[0, b, 0, 0] != OPEN
        searched = looked_up[:, b].copy() if answering else own
        for t in range(lengths[b]):
            if reset.shape[0] > 0 and reset[b, t]:
                own[:] = 0
                last[:] = 0
                searched, answering = own, False
            matches[b, t] = step(ids[b, t], own, searched, last)
            if ids[b, t] == opens:
                searched, answering = own.copy(), True
            elif ids[b, t] == closes:
                searched, answering = own, False
        if opens >= 0:
            if answering:
                looked_up[:, b] = searched
            else:
                looked_up[:, b] = OPEN
        table[:, b] = own
        recent[:, b] = last


def recall(
    ids: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    table: Tensor,
    recent: Tensor,
    looked_up: Tensor | None = None,
    closing: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.recall.reference.recall`."""
    batch, time = ids.shape
    table, recent = table.clone(), recent.clone()
    matches = torch.zeros(batch, time, dtype=torch.int32)
    ends = torch.full((batch,), time) if lengths is None else lengths
    starts = torch.zeros(0, time, dtype=torch.bool) if reset is None else reset
    searched = table[:0] if looked_up is None else looked_up
    use_torch_threads()
    arrays = (x.numpy() for x in (ids, starts, ends, table, searched, recent, matches))
    _read(*arrays, *(closing or (-1, -1)))
    return matches, table, recent
