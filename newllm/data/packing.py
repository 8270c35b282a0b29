"""Documents into rows of equal length, and rows into the sequences of a batch.

A document of n tokens has n - 1 positions (each token predicts the next). A document that fits a
row is never cut; rows are filled best-fit. A longer one becomes a chain of rows that follow each
other in one sequence of the batch, step after step, and the state is carried from row to row, so
that training sees what streaming will see. Every document starts with a reset.

A plan is a few numbers a document in arrays, not an object a row: a chain is known by its
documents, of which only the first may be longer than a row, and a row is worked out when its step
comes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from heapq import heapreplace
from typing import NamedTuple

import numpy as np

_SLICE = 65_536
"""Documents whose numbers are Python objects at a time."""


@dataclass(frozen=True)
class Chains:
    """Rows that must follow each other in one sequence; the last one may hold further documents."""

    documents: np.ndarray
    """Chain after chain, in the order of their places, [P] int32."""
    first: np.ndarray
    """Where each chain begins in `documents`, and where the last one ends, [C + 1] int32."""
    rows: np.ndarray
    """Rows of each chain, [C] int32."""


class Segments(NamedTuple):
    """The segments of one step: positions start..stop of documents, placed at a column of the row
    of a sequence; [S] int64 each."""

    sequence: np.ndarray
    """Those of a sequence follow each other, from the left."""
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    column: np.ndarray


@dataclass(frozen=True)
class Plan:
    """One epoch: for every step and sequence, what the row holds."""

    row_length: int
    steps: int
    batch_size: int
    entries: np.ndarray
    """Numbers of chains, -1 for an empty row, sequence after sequence, [E] int32."""
    begins: np.ndarray
    """Sequence times `steps` plus the step at which each begins: rising, [E]."""
    chains: Chains
    positions: np.ndarray
    """Scored positions of each document, [D]."""

    def segments(self, step: int, part: slice = slice(None)) -> Segments:
        """What the sequences `part` hold at one step; as quick for the last step as the first."""
        sequences = np.arange(self.batch_size)[part]
        # Of the array's own type: the search would copy an array of another.
        key = (sequences * self.steps + step).astype(self.begins.dtype)
        entry = self.begins.searchsorted(key, "right") - 1
        row = (key - self.begins[entry]).astype(np.int64)
        chain = self.entries[entry]
        held = chain >= 0
        sequences, row, chain = sequences[held], row[held], chain[held]
        first = self.chains.first[chain].astype(np.int64)
        whole = row < self.chains.rows[chain] - 1  # filled by the chain's first document
        count = np.where(whole, 1, self.chains.first[chain + 1] - first)
        ends = np.cumsum(count)
        nth = np.arange(count.sum()) - np.repeat(ends - count, count)
        document = self.chains.documents[np.repeat(first, count) + nth].astype(np.int64)
        start = np.where(nth == 0, np.repeat(row * self.row_length, count), 0)
        stop = self.positions[document]
        stop = np.where(nth == 0, np.minimum(start + self.row_length, stop), stop)
        before = np.cumsum(stop - start) - (stop - start)
        column = before - np.repeat(before[ends - count], count)
        return Segments(np.repeat(sequences, count), document, start, stop, column)


def pack(
    positions: np.ndarray, order: np.ndarray, row_length: int, one_document_per_row: bool
) -> Chains:
    """Place documents, in the order given ([D]), into chains of rows of `row_length` positions.

    `positions` [D] are the scored ones of each document; every document that has one is in exactly
    one chain. Several documents share a row unless `one_document_per_row`.
    """
    order = order[positions[order] > 0]
    chain_of = np.empty(len(order), np.int32)
    # Last rows by the room they have left; `rooms` has bit r set where some row has room r.
    by_room = [array("i") for _ in range(row_length + 1)]
    rooms = chains = 0
    for begin in range(0, len(order), _SLICE):
        chosen = []
        for length in positions[order[begin : begin + _SLICE]].tolist():
            if length <= row_length and (fitting := rooms >> length):
                room = length + (fitting & -fitting).bit_length() - 1  # the tightest that fits
                chain = by_room[room].pop()
                if not by_room[room]:
                    rooms &= ~(1 << room)
                left = room - length
            else:
                chain, left = chains, -length % row_length
                chains += 1
            chosen.append(chain)
            if left and not one_document_per_row:
                by_room[left].append(chain)
                rooms |= 1 << left
        chain_of[begin : begin + len(chosen)] = chosen
    documents = order[np.argsort(chain_of, kind="stable")].astype(np.int32)
    first = np.zeros(chains + 1, np.int32)
    np.cumsum(np.bincount(chain_of, minlength=chains), out=first[1:])
    rows = -(-positions[documents[first[:-1]]] // row_length)
    return Chains(documents, first, rows.astype(np.int32))


def plan_epoch(
    positions: np.ndarray,
    row_length: int,
    batch_size: int,
    shuffle_seed: tuple[int, int] | None,
    one_document_per_row: bool = False,
) -> Plan:
    """Lay out one epoch.

    Args:
        positions: scored positions of each document, [D].
        row_length: positions a row holds.
        batch_size: sequences in a batch.
        shuffle_seed: (seed, epoch) that decides the order; None keeps the documents' order.
        one_document_per_row: whether no two documents share a row.
    """
    documents = np.arange(len(positions), dtype=np.int32)
    rng = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    order = documents if rng is None else rng.permutation(documents)
    chains = pack(positions, order, row_length, one_document_per_row)
    longest_first = np.argsort(-chains.rows, kind="stable").astype(np.int32)
    sequence_of, heights = _spread(chains.rows[longest_first], batch_size)
    by_sequence = np.split(
        longest_first[np.argsort(sequence_of, kind="stable")],
        np.cumsum(np.bincount(sequence_of, minlength=batch_size))[:-1],
    )
    steps = int(heights.max())
    all_entries, begins = [], []
    for number, (sequence, height) in enumerate(zip(by_sequence, heights.tolist(), strict=True)):
        # Spread the gaps of shorter sequences over the epoch: its last batches would be
        # nearly empty.
        entries = np.concatenate([sequence, np.full(steps - height, -1, np.int32)])
        if rng is not None:
            rng.shuffle(entries)
        rows = np.where(entries < 0, 1, chains.rows[entries]) if len(chains.rows) else entries
        all_entries.append(entries)
        begins.append(number * steps + np.cumsum(rows, dtype=np.int64) - rows)
    kind = np.uint32 if steps * batch_size < 2**32 else np.int64
    return Plan(
        row_length,
        steps,
        batch_size,
        np.concatenate(all_entries),
        np.concatenate(begins).astype(kind),
        chains,
        positions,
    )


def _spread(rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Each chain to the emptiest sequence: given the longest first, sequences end up equally long.

    From the rows of each chain, falling, [C]: (sequence of each chain, [C] int32; rows in each
    sequence, [batch_size] int64).
    """
    heap = [(0, sequence) for sequence in range(batch_size)]
    sequence_of = np.empty(len(rows), np.int32)
    for begin in range(0, len(rows), _SLICE):
        chosen = []
        for count in rows[begin : begin + _SLICE].tolist():
            height, sequence = heap[0]
            chosen.append(sequence)
            heapreplace(heap, (height + count, sequence))
        sequence_of[begin : begin + len(chosen)] = chosen
    heights = np.zeros(batch_size, np.int64)
    for height, sequence in heap:
        heights[sequence] = height
    return sequence_of, heights
