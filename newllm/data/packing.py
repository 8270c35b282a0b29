"""Documents into rows of equal length, and rows into lanes.

A document of n tokens has n - 1 positions (each token predicts the next). A document that fits a
row is never cut; rows are filled best-fit. A longer one becomes a chain of rows that follow each
other in one lane, where the state is carried from row to row, so that training sees what streaming
will see. Every document starts with a reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Positions start..stop of a document, placed at `column` of a row."""

    document: int
    start: int
    stop: int
    column: int


Row = list[Segment]
Chain = list[Row]
"""Rows that must follow each other in one lane."""


@dataclass(frozen=True)
class Plan:
    """One epoch: for every step and lane, what the row holds."""

    steps: list[list[Row]]  # [steps][lanes]
    row_length: int


def pack(positions: np.ndarray, order: np.ndarray, row_length: int, shared: bool) -> list[Chain]:
    """Place documents into chains of rows.

    Args:
        positions: scored positions of each document, [D].
        order: the documents in the order to be placed, [D].
        row_length: positions a row holds.
        shared: whether several documents may share a row.

    Returns:
        Chains; every position of every document in `order` is in exactly one segment.
    """
    chains: list[Chain] = []
    # Rows by the room they have left; `rooms` has bit r set where some row has room r.
    by_room: list[list[Row]] = [[] for _ in range(row_length + 1)]
    rooms = 0
    for document in order.tolist():
        length = int(positions[document])
        if length <= 0:
            continue
        if length <= row_length and (fitting := rooms >> length):
            room = length + (fitting & -fitting).bit_length() - 1  # the tightest that fits
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
            column = row_length - room
            row.append(Segment(document, 0, length, column))
            left = room - length
        else:
            starts = range(0, length, row_length)
            chain = [[Segment(document, s, min(s + row_length, length), 0)] for s in starts]
            chains.append(chain)
            row = chain[-1]
            left = row_length - row[0].stop + row[0].start
        if shared and left:
            by_room[left].append(row)
            rooms |= 1 << left
    return chains


def plan_epoch(
    positions: np.ndarray,
    row_length: int,
    lanes: int,
    shuffle_seed: tuple[int, int] | None,
    shared: bool = True,
) -> Plan:
    """Lay out one epoch.

    Args:
        positions: scored positions of each document, [D].
        row_length: positions a row holds.
        lanes: rows in a batch.
        shuffle_seed: (seed, epoch) that decides the order; None keeps the documents' order.
        shared: whether several documents may share a row.
    """
    documents = np.arange(len(positions))
    rng = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    order = documents if rng is None else rng.permutation(documents)
    chains = pack(positions, order, row_length, shared)
    # The longest chains first, each to the emptiest lane: lanes end up equally long.
    lane_chains: list[list[Chain]] = [[] for _ in range(lanes)]
    heights = [(0, lane) for lane in range(lanes)]  # a heap
    for index in sorted(range(len(chains)), key=lambda i: -len(chains[i])):
        height, lane = heights[0]
        lane_chains[lane].append(chains[index])
        heapreplace(heights, (height + len(chains[index]), lane))
    steps = max(height for height, _ in heights)
    for height, lane in heights:
        # Spread the gaps of shorter lanes over the epoch, lest its last batch be nearly empty.
        lane_chains[lane] += [[[]] for _ in range(steps - height)]
    if rng is not None:
        for chain_list in lane_chains:
            rng.shuffle(chain_list)  # type: ignore[arg-type]
    columns = [[row for chain in chain_list for row in chain] for chain_list in lane_chains]
    return Plan([list(rows) for rows in zip(*columns, strict=True)], row_length)
