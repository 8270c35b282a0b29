"""Batches of one epoch, in an order that is a function of (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from newllm.data.encode import MASKED
from newllm.data.packing import Plan, Row, plan_epoch
from newllm.data.shards import Documents

IGNORED = -100
"""Target of positions that are not scored: padding, and what follows a document's last token."""


@dataclass(frozen=True)
class Batch:
    """One step's rows. All tensors are [B, T]."""

    ids: Tensor
    targets: Tensor
    """The next token, `IGNORED` where there is none."""
    reset: Tensor
    """True where a document starts."""
    assistant: Tensor
    """True where the target is a token an assistant has to produce."""
    scored: int
    """Targets that count; of a step's batch, those of all its sequences, whichever are here."""
    tables: Tensor | None = None
    """Number of the table of counts that did not count the document, uint8, if there are some."""

    def select(self, which: slice | Tensor, columns: int | None = None) -> Batch:
        """The part of the batch in these sequences, up to a number of columns (default: all)."""
        targets = self.targets[which, :columns]
        return Batch(
            self.ids[which, :columns],
            targets,
            self.reset[which, :columns],
            self.assistant[which, :columns],
            int((targets != IGNORED).sum()),
            None if self.tables is None else self.tables[which, :columns],
        )

    def micro_batches(
        self, rows: int, apart: bool = False
    ) -> Iterator[tuple[slice | Tensor, Batch]]:
        """So many sequences at a time: which they are, and that part of the batch.

        Where documents are `apart`, no two of them share a sequence: those of like length go
        together, and no further than the longest, as the rest of the columns is padding.
        """
        if not apart:
            for start in range(0, len(self.ids), rows):
                sequences = slice(start, start + rows)
                yield sequences, self.select(sequences)
            return
        filled = self.filled()
        for numbers in filled.argsort(descending=True, stable=True).split(rows):
            yield numbers, self.select(numbers, max(1, int(filled[numbers[0]])))

    def filled(self) -> Tensor:
        """Columns of each sequence up to its last target that counts, [B]."""
        columns = torch.arange(1, self.targets.shape[1] + 1)
        return ((self.targets != IGNORED) * columns).amax(dim=1)


class EpochLoader:
    """The batches of one epoch over a split; `batches(step)` starts anywhere.

    It reads the sequences `part`; the others are another process's. The rest is as in `plan_epoch`.
    """

    def __init__(
        self,
        split: Documents,
        row_length: int,
        batch_size: int,
        shuffle_seed: tuple[int, int] | None = None,
        shared: bool = True,
        part: slice = slice(None),
        tables: np.ndarray | None = None,
    ) -> None:
        self.split, self.part, self.tables = split, part, tables
        self.batch_size = len(range(batch_size)[part])  # of this process
        self.plan: Plan = plan_epoch(
            split.lengths - 1, row_length, batch_size, shuffle_seed, shared
        )

    def __len__(self) -> int:
        """Steps in the epoch."""
        return self.plan.steps

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """Batches from `first_step` on."""
        return (self.batch(step) for step in range(first_step, len(self)))

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        shape = (self.batch_size, self.plan.row_length)
        ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        reset, assistant = np.zeros(shape, bool), np.zeros(shape, bool)
        tables = None if self.tables is None else np.zeros(shape, np.uint8)
        rows = self.plan.rows(step)
        for sequence, row in enumerate(rows[self.part]):
            end = 0
            for segment in row:
                # One more token than positions: inputs and their successors overlap by all but one.
                tokens = self.split.tokens(segment.document, segment.start, segment.stop + 1)
                end = segment.column + segment.stop - segment.start
                place = (sequence, slice(segment.column, end))
                ids[place], targets[place] = tokens[:-1], tokens[1:]
                marks = self.split.assistant(segment.document, segment.start + 1, segment.stop + 1)
                assistant[place] = marks == 1
                targets[place][marks == MASKED] = IGNORED
                if tables is not None and self.tables is not None:
                    tables[place] = self.tables[segment.document]
                if segment.start == 0:
                    reset[sequence, segment.column] = True
            if 0 < end < shape[1]:
                reset[sequence, end] = True  # padding after the last document starts from nothing
        return Batch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            reset=torch.from_numpy(reset),
            tables=None if tables is None else torch.from_numpy(tables),
            assistant=torch.from_numpy(assistant),
            scored=self._scored(rows, int((targets != IGNORED).sum())),
        )

    def _scored(self, rows: Sequence[Row], here: int) -> int:
        """Targets of a step that count, in all its sequences."""
        if len(rows[self.part]) == len(rows):
            return here
        return sum(
            int((self.split.assistant(s.document, s.start + 1, s.stop + 1) != MASKED).sum())
            for row in rows
            for s in row
        )


class Mixture:
    """Rehearsal: all documents of one split, and a selection of earlier data sets' among them.

    A fraction of 5% (related texts) to 25% (very different ones) together with a new warmup keeps
    what a model has learnt almost as well as training on everything anew (Ibrahim et al. 2024,
    "Simple and Scalable Strategies to Continually Pre-train Large Language Models",
    arXiv:2403.08763).

    `fraction` (0..0.9) of all tokens is rehearsed, an equal part from each of the splits
    `rehearsed`; `main` is read completely. `seed` decides, with the rest, which documents are
    drawn.
    """

    def __init__(
        self,
        main: Documents,
        rehearsed: Sequence[Documents],
        fraction: float,
        seed: tuple[int, ...],
    ) -> None:
        tokens = float(main.lengths.sum()) * fraction / (1 - fraction) / max(1, len(rehearsed))
        chosen = [np.arange(len(main.lengths), dtype=np.int32)]
        for number, split in enumerate(rehearsed):
            chosen.append(_drawn(split.lengths, tokens, np.random.default_rng((*seed, number))))
        self._splits = [main, *rehearsed]
        self._split = np.repeat(
            np.arange(len(chosen), dtype=np.int16), [len(part) for part in chosen]
        )
        self._document = np.concatenate(chosen)
        lengths = [s.lengths[part] for s, part in zip(self._splits, chosen, strict=True)]
        self.lengths: np.ndarray = np.concatenate(lengths)
        """Tokens of each document, [D] int64."""

    def select(self, of_each: Sequence[np.ndarray]) -> np.ndarray:
        """What is known of each document of each split, for the documents of the mixture."""
        first = np.cumsum([0, *map(len, of_each)])[:-1]
        return np.concatenate(of_each)[first[self._split] + self._document]

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Ids of tokens start..stop of a document, uint16."""
        split = self._splits[self._split[document]]
        return split.tokens(int(self._document[document]), start, stop)

    def assistant(self, document: int, start: int, stop: int) -> np.ndarray:
        """1 for those an assistant has to produce, `MASKED` for those not scored, uint8."""
        split = self._splits[self._split[document]]
        return split.assistant(int(self._document[document]), start, stop)


def _drawn(lengths: np.ndarray, tokens: float, rng: np.random.Generator) -> np.ndarray:
    """Documents with so many tokens in all, none twice before all were drawn once."""
    rounds = []
    while tokens > 0 and lengths.sum() > 0:
        order = rng.permutation(len(lengths)).astype(np.int32)
        reached = np.cumsum(lengths[order])
        rounds.append(order[: np.searchsorted(reached, tokens) + 1])
        tokens -= float(lengths[rounds[-1]].sum())
    return np.concatenate(rounds) if rounds else np.zeros(0, np.int32)
