"""Counts on a CPU: the same numbers as `reference.py`, in machine code."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.counts.table import CHECK_VALUES, MOST_CONTEXT, CountTable
from newllm.model.kernels.numerics import kernel, use_torch_threads
from newllm.model.recall.cpu import enter
from newllm.model.recall.reference import HASH_FACTOR, HASH_PRIME


@numba.njit(inline="always")
def find(recent, offset, sets, starts, checks, found):
    """Contexts of one text's last tokens [..], -1 where unknown: to `found` [K]."""
    found[:] = -1
    value = np.int64(0)
    for order in range(MOST_CONTEXT):
        if recent[order] == 0:
            break
        value = (value * HASH_FACTOR + recent[order]) % HASH_PRIME
        place, check = offset + order * sets + value % sets, value // sets % CHECK_VALUES
        for number in range(starts[place], starts[place + 1]):
            if checks[number] == check:
                found[order] = number
                break


@kernel
def _find_all(ids, tables, reset, lengths, recent, index, starts, checks, found):
    for b in numba.prange(ids.shape[0]):
        last = recent[:, b].copy()
        for t in range(lengths[b]):
            if reset.shape[0] > 0 and reset[b, t]:
                last[:] = 0
            enter(ids[b, t], last)
            table = tables[b, t] if tables.shape[0] > 0 else 0
            find(last, index[table, 0], index[table, 1], starts, checks, found[b, t])
        recent[:, b] = last


def contexts(
    table: CountTable,
    ids: Tensor,
    tables: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    recent: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`newllm.model.counts.reference.contexts`."""
    batch, time = ids.shape
    recent = recent.clone()
    found = torch.full((batch, time, MOST_CONTEXT), -1, dtype=torch.int32)
    ends = torch.full((batch,), time) if lengths is None else lengths
    starts = torch.zeros(0, time, dtype=torch.bool) if reset is None else reset
    numbers = torch.zeros(0, time, dtype=torch.uint8) if tables is None else tables
    use_torch_threads()
    _find_all(
        *(x.numpy() for x in (ids, numbers, starts, ends, recent)),
        table.index, table.starts, table.checks, found.numpy(),
    )  # fmt: skip
    return found, recent


@kernel
def _followed(contexts, targets, first, tokens, probability, found):
    for row in numba.prange(contexts.shape[0]):
        for order in range(contexts.shape[1]):
            number = contexts[row, order]
            if number >= 0:
                for place in range(first[number], first[number + 1]):
                    if tokens[place] == targets[row]:
                        found[row, order] = probability[place]
                        break


def followed(table: CountTable, contexts: Tensor, targets: Tensor) -> Tensor:
    """See :func:`newllm.model.counts.reference.followed`."""
    found = torch.zeros(contexts.shape, dtype=torch.float32)
    use_torch_threads()
    _followed(
        contexts.numpy(), targets.numpy(), table.first, table.tokens, table.probability,
        found.numpy(),
    )  # fmt: skip
    return found
