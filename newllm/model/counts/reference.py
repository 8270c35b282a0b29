"""Counts in plain numpy: which contexts a table knows, and what it says of a token. The definition.

Shapes: B sequences of T tokens, K orders of contexts, N positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from newllm.model.counts.table import CHECK_VALUES, MOST_CONTEXT, CountTable
from newllm.model.recall.reference import HASH_FACTOR, HASH_PRIME


def contexts(
    table: CountTable,
    ids: Tensor,
    tables: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    recent: Tensor,
) -> tuple[Tensor, Tensor]:
    """Look up what the last 1, 2, .. K tokens are at every position.

    Args:
        table: one table, or several.
        ids: token ids, [B, T].
        tables: number of the table for each token, uint8 [B, T], or None for the first.
        reset: True where a document starts, [B, T], or None.
        lengths: only the first so many tokens of each sequence count, [B]; None for all.
        recent: the last tokens before the first one, the last one first, each one more than its
            id, 0 for none: int32 [5, B]; not changed.

    Returns:
        numbers of the contexts, -1 where one is unknown, int32 [B, T, K] (anything at padding); and
        recent after the last token.
    """
    kept, time = recent.shape[0], ids.shape[1]
    before = recent.flip(0).t().numpy()
    history = np.concatenate([before, ids.numpy() + 1], axis=1).astype(np.int64)  # oldest first
    place = np.arange(-kept, time)
    began = np.full(ids.shape, -kept)
    if reset is not None:
        began = np.maximum.accumulate(np.where(reset.numpy(), np.arange(time), -kept), axis=1)
    numbers = np.zeros(ids.shape, np.int64) if tables is None else tables.numpy().astype(np.int64)
    offset, sets = table.index[numbers, 0], table.index[numbers, 1]
    found = np.full((*ids.shape, MOST_CONTEXT), -1, np.int32)
    value, alive = np.zeros(ids.shape, np.int64), np.ones(ids.shape, bool)
    for order in range(MOST_CONTEXT):
        window = slice(kept - order, kept - order + time)
        alive = alive & (history[:, window] > 0) & (place[window] >= began)
        value = (value * HASH_FACTOR + history[:, window]) % HASH_PRIME
        at = offset + order * sets + value % sets
        found[..., order] = _find(table, at, value // sets % CHECK_VALUES, alive)
    ends = np.full(len(history), time) if lengths is None else lengths.numpy()
    last = np.stack([history[b, end : end + kept] for b, end in enumerate(ends.tolist())])
    if reset is not None:
        for b, end in enumerate(ends.tolist()):
            if end > 0:
                last[b, place[end : end + kept] < began[b, end - 1]] = 0
    after = torch.from_numpy(last[:, ::-1].T.copy()).to(recent.dtype)
    return torch.from_numpy(found), after


def _find(table: CountTable, at: np.ndarray, check: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The context in each of these sets that has the check, else -1."""
    found = np.full(at.shape, -1, np.int32)
    number, end = table.starts[at], table.starts[at + 1]
    searched = np.flatnonzero(alive & (number < end))
    while len(searched):
        here = number.flat[searched]
        hit = table.checks[here] == check.flat[searched]
        found.flat[searched[hit]] = here[hit]
        number.flat[searched] += 1
        searched = searched[~hit & (here + 1 < end.flat[searched])]
    return found


def followed(table: CountTable, contexts: Tensor, targets: Tensor) -> Tensor:
    """What each context says of a token: q(target | context), 0 where nothing, fp32 [N, K].

    Args:
        table: one table, or several.
        contexts: as found, [N, K].
        targets: ids, [N].
    """
    probability = np.zeros(contexts.shape, np.float32)
    for order in range(MOST_CONTEXT):
        rows, places = followers(table, contexts[:, order].numpy())
        hit = table.tokens[places] == targets.numpy()[rows]
        probability[rows[hit], order] = table.probability[places[hit]]
    return torch.from_numpy(probability)


def followers(table: CountTable, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of these contexts [N] and places of followers, one of each for every follower."""
    (known,) = np.nonzero(numbers >= 0)
    first, end = table.first[numbers[known]], table.first[numbers[known] + 1]
    count = end - first
    places = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    return np.repeat(known, count), places
