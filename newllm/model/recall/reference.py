"""Recall: what followed the last tokens the last time they stood in this text. The definition.

A state of fixed size that is learnt cannot copy (Jelassi et al. 2024, arXiv:2402.01032); attention
does, by induction heads (Olsson et al. 2022, arXiv:2209.11895). This is one without attention: for
each of a few orders k a table of fixed size, whose slot for the last k tokens says which token
followed them last, and how often in a row. It is a function of the tokens alone: nothing in it is
learnt. What the model makes of it is in `layer.py`.

A slot is one number below 2^31::

    token that followed   + 2^16 * times in a row, 1..15   + 2^20 * check of the context, 0..2047

and 0 where nothing was entered. A table is S sets of WAYS slots. The last k tokens t_1 (the last),
t_2, .. t_k have the hash ::

    h = 0;  for i = 1..k:  h = (h * HASH_FACTOR + t_i + 1) mod HASH_PRIME

and go in one of the slots of set h mod S, with the check (h div S) mod 2048. What is entered comes
first in its set; what has not been entered for longest goes (a set-associative cache).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ORDERS = (1, 2, 3, 5)
"""How many last tokens a table knows, rising."""

LONGEST = ORDERS[-1]

MOST_TIMES = 15
"""Times in a row are counted no further."""

WAYS = 4
"""Slots that a context may be in: with four, 1,024 find nearly what 16,384 do (docs/LOG.md)."""

TIMES_UNIT, CHECK_UNIT, CHECKS = 2**16, 2**20, 2**11
ORDER_UNIT = CHECK_UNIT
"""In a match the number of the order stands where a slot has its check."""

OPEN = -1
"""In place of tables that are looked up, where no answer is read: those that are entered."""

HASH_FACTOR, HASH_PRIME = 1_640_531_527, 2**31 - 1


def recall(
    ids: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    table: Tensor,
    recent: Tensor,
    looked_up: Tensor | None = None,
    closing: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read tokens: look each one up, with those before it, and enter it behind those.

    Args:
        ids: token ids, [B, T].
        reset: True where a document starts, of whose tables nothing is left, [B, T]; or None.
        lengths: only the first so many tokens of each sequence count, [B]; None for all.
        table: slots before the first token, int32 [K, B, S, WAYS] for K orders; not changed.
        recent: the last tokens before the first one, the last one first, each one more than its
            id, 0 for none: int32 [5, B]; not changed.
        looked_up: slots in which tokens are looked up instead, while they are entered in `table`
            all the same: [K, B, S, WAYS], or None.
        closing: the tokens between which answers stand, where answers are read as they are written:
            behind the first of them tokens are looked up in the tables as they are there, until
            the second has been read. Then `looked_up` is needed (`OPEN` outside of answers), and is
            changed to what the next tokens are looked up in.

    Returns:
        matches int32 [B, T], of the longest context that is known: what followed it as token +
        2^16 * times in a row + 2^20 * number of its order; 0 where none is. And table and recent
        after the last token.
    """
    # In the transformers file nothing stands around this: there tensors may be on a GPU.
    device, table, recent = ids.device, table.cpu().clone(), recent.cpu().clone()
    slots, last = table.numpy(), recent.numpy()
    frozen = None if looked_up is None else looked_up.cpu().numpy()
    opens, closes = closing or (-1, -1)
    matches = torch.zeros(ids.shape, dtype=torch.int32)
    for b, text in enumerate(ids.tolist()):
        length = len(text) if lengths is None else int(lengths[b])
        searched = slots if frozen is None or frozen[0, b, 0, 0] == OPEN else frozen
        for t, token in enumerate(text[:length]):
            if reset is not None and bool(reset[b, t]):
                slots[:, b], last[:, b] = 0, 0
                searched = slots  # what was looked up is of another document
            for order, held, check in _places(last[:, b].tolist(), slots.shape[2]):
                slots[order, b, held] = entered(slots[order, b, held].tolist(), check, token)
            last[1:, b] = last[:-1, b].copy()
            last[0, b] = token + 1
            matches[b, t] = longest_match(searched[:, b], last[:, b])
            if token == opens:
                searched = slots.copy()
            elif token == closes:
                searched = slots
        if closing is not None and frozen is not None:
            frozen[:, b] = OPEN if searched is slots else searched[:, b]
    return matches.to(device), table.to(device), recent.to(device)


def longest_match(table: np.ndarray, recent: np.ndarray) -> int:
    """What one text's table [K, S, WAYS] says of its last tokens [5]; see :func:`recall`."""
    for order, held, check in reversed(_places(recent.tolist(), table.shape[1])):
        for slot in table[order, held].tolist():
            if _is_of(slot, check):
                return slot % CHECK_UNIT + ORDER_UNIT * order
    return 0


def possible_slots(table: Tensor, vocab_size: int) -> Tensor:
    """Where a table has what a slot can hold: nothing, or a token and how often; bool."""
    times = table % CHECK_UNIT // TIMES_UNIT
    return (table == 0) | ((table > 0) & (times > 0) & (table % TIMES_UNIT < vocab_size))


def entered(held: list[int], check: int, token: int) -> list[int]:
    """What a set is after a token has followed a context with this check."""
    place = next((at for at, slot in enumerate(held) if _is_of(slot, check)), len(held) - 1)
    before, times = held[place], 1
    if _is_of(before, check) and before % TIMES_UNIT == token:
        times = min(before % CHECK_UNIT // TIMES_UNIT + 1, MOST_TIMES)
    new = token + TIMES_UNIT * times + CHECK_UNIT * check
    return [new, *held[:place], *held[place + 1 :]]


def in_sets(table: Tensor) -> Tensor:
    """The table of a state, where it may be from before there were sets: [K, B, slots] then.

    There slot h mod slots had the check (h div slots) mod 2048: the same contexts are in both.
    """
    if table.ndim == 4:
        return table
    sets = table.shape[2] // WAYS
    hashed = table // CHECK_UNIT * table.shape[2] + torch.arange(table.shape[2])
    moved = table % CHECK_UNIT + CHECK_UNIT * (hashed // sets % CHECKS)
    moved = torch.where(table > 0, moved, 0).to(table.dtype)
    return moved.unflatten(2, (WAYS, sets)).transpose(2, 3).contiguous()


def _is_of(slot: int, check: int) -> bool:
    return slot > 0 and slot // CHECK_UNIT == check


def _places(recent: list[int], sets: int) -> list[tuple[int, int, int]]:
    """Order's number, set and check of the contexts that the last tokens are."""
    places, value = [], 0
    for length, token in enumerate(recent, start=1):
        if token == 0:  # the document has no more
            break
        value = (value * HASH_FACTOR + token) % HASH_PRIME
        if length in ORDERS:
            places.append((ORDERS.index(length), value % sets, value // sets % CHECKS))
    return places
