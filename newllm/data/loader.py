"""Batches of one epoch, in an order that is a function of (seed, epoch, step) alone."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from newllm.data.encode import ANSWERED, MASKED
from newllm.data.packing import Plan, plan_epoch
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
    scored: int
    """Targets that count; of a step's batch, those of all its sequences, whichever are here."""
    assistant: Tensor | None = None
    """True where the target is a token an assistant has to produce; None where it was not read."""
    tables: Tensor | None = None
    """Number of the table of counts that did not count the document, uint8, if there are some."""

    def select(self, which: slice | Tensor, columns: int | None = None) -> Batch:
        """The part of the batch in these sequences, up to a number of columns (default: all)."""
        targets = self.targets[which, :columns]
        return Batch(
            self.ids[which, :columns],
            targets,
            self.reset[which, :columns],
            int((targets != IGNORED).sum()),
            None if self.assistant is None else self.assistant[which, :columns],
            None if self.tables is None else self.tables[which, :columns],
        )

    def micro_batches(
        self, rows: int, one_document_per_row: bool = False
    ) -> Iterator[tuple[slice | Tensor, Batch]]:
        """So many sequences at a time: which they are, and that part of the batch.

        Where `one_document_per_row`, no two documents share a sequence: those of like length go
        together, and no further than the longest, as the rest of the columns is padding.
        """
        if not one_document_per_row:
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

    It reads the sequences `part`; the others are another process's. What an `assistant` has to
    produce is read if asked. The rest is as in `plan_epoch`.
    """

    def __init__(
        self,
        split: Documents,
        row_length: int,
        batch_size: int,
        shuffle_seed: tuple[int, int] | None = None,
        one_document_per_row: bool = False,
        part: slice = slice(None),
        tables: np.ndarray | None = None,
        assistant: bool = False,
    ) -> None:
        self.split, self.part, self.tables, self.assistant = split, part, tables, assistant
        self.batch_size = len(range(batch_size)[part])  # of this process
        self.plan: Plan = plan_epoch(
            split.lengths - 1, row_length, batch_size, shuffle_seed, one_document_per_row
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
        reset = np.zeros(shape, bool)
        assistant = np.zeros(shape, bool) if self.assistant else None
        tables = None if self.tables is None else np.zeros(shape, np.uint8)
        segments = self.plan.segments(step, self.part)
        lengths = segments.stop - segments.start
        if len(lengths):
            sequence = segments.sequence - range(self.plan.batch_size)[self.part].start
            first = sequence * shape[1] + segments.column
            place, input_ = _places(first, lengths)
            # One more token than positions: inputs and their successors overlap by all but one.
            span = segments.document, segments.start, segments.stop + 1
            tokens = self.split.parts(*span)
            ids.reshape(-1)[place], targets.reshape(-1)[place] = tokens[input_], tokens[input_ + 1]
            if assistant is not None or self.split.masked:
                marks = self.split.parts(*span, marks=True)[input_ + 1]
                if assistant is not None:
                    assistant.reshape(-1)[place] = marks == ANSWERED
                targets.reshape(-1)[place[marks == MASKED]] = IGNORED
            if tables is not None and self.tables is not None:
                tables.reshape(-1)[place] = np.repeat(self.tables[segments.document], lengths)
            starts = reset.reshape(-1)
            starts[first[segments.start == 0]] = True
            # Padding after the last document starts from nothing.
            end = segments.column + lengths
            last = np.append(sequence[1:] != sequence[:-1], True) & (end < shape[1])
            starts[(first + lengths)[last]] = True
        return Batch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            reset=torch.from_numpy(reset),
            tables=None if tables is None else torch.from_numpy(tables),
            assistant=None if assistant is None else torch.from_numpy(assistant),
            scored=self._scored(step, targets),
        )

    def _scored(self, step: int, targets: np.ndarray) -> int:
        """Targets of a step that count, in all its sequences: these and other processes'."""
        if self.batch_size == self.plan.batch_size:
            return int((targets != IGNORED).sum())
        everywhere = self.plan.segments(step)
        if not self.split.masked:
            return int((everywhere.stop - everywhere.start).sum())
        read = everywhere.document, everywhere.start + 1, everywhere.stop + 1
        return int((self.split.parts(*read, marks=True) != MASKED).sum())


def _places(first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of segments go, and where they are: all tokens of a batch at once.

    Segments of 2 and 1 positions that begin at 0 and 5 of the flat batch are read as 3 and 2
    tokens, a b c and x y: places 0, 1 and 5 take a, b and x, which are inputs 0, 1 and 3.

    Args:
        first: place of each segment's first position in the flat batch, [S].
        lengths: positions of each, [S].

    Returns:
        of each position its place, and the place of its input among the tokens read.
    """
    ends = np.cumsum(lengths)
    count = np.arange(ends[-1])
    place = np.repeat(first - ends + lengths, lengths) + count
    return place, np.repeat(np.arange(len(ends)), lengths) + count


def read_ahead(batches: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """The same batches, so many of them read by a thread before they are asked for."""
    read: queue.Queue[Batch | BaseException | None] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        waiting = True
        while waiting and not stopped.is_set():
            with contextlib.suppress(queue.Full):
                read.put(item, timeout=0.1)
                waiting = False

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, name="newllm batches", daemon=True).start()
    try:
        while (item := read.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


class Mixture:
    """Rehearsal: all documents of one split, and a selection of earlier data sets' among them.

    A fraction of 5% (related texts) to 25% (very different ones) together with a new warmup keeps
    what a model has learnt almost as well as training on everything anew (Ibrahim et al. 2024,
    "Simple and Scalable Strategies to Continually Pre-train Large Language Models",
    arXiv:2403.08763).

    `fraction` (0..0.9) of all tokens is rehearsed, an equal part from each of the splits
    `rehearsed`, or `of_last` (0..1) of it from the last of several; `main` is read completely.
    `seed` decides, with the rest, which documents are drawn.
    """

    def __init__(
        self,
        main: Documents,
        rehearsed: Sequence[Documents],
        fraction: float,
        seed: tuple[int, ...],
        of_last: float | None = None,
    ) -> None:
        tokens = float(main.lengths.sum()) * fraction / (1 - fraction)
        parts = [1 / max(1, len(rehearsed))] * len(rehearsed)
        if of_last is not None and len(rehearsed) > 1:
            parts = [(1 - of_last) / (len(rehearsed) - 1)] * (len(rehearsed) - 1) + [of_last]
        chosen = [np.arange(len(main.lengths), dtype=np.int32)]
        for number, (split, part) in enumerate(zip(rehearsed, parts, strict=True)):
            rng = np.random.default_rng((*seed, number))
            chosen.append(_drawn(split.lengths, tokens * part, rng))
        self._splits = [main, *rehearsed]
        self._split = np.repeat(
            np.arange(len(chosen), dtype=np.int16), [len(part) for part in chosen]
        )
        self._document = np.concatenate(chosen)
        lengths = [s.lengths[part] for s, part in zip(self._splits, chosen, strict=True)]
        self.lengths: np.ndarray = np.concatenate(lengths)
        """Tokens of each document, [D] int64."""
        self.masked = any(split.masked for split in self._splits)

    def select(self, of_each: Sequence[np.ndarray]) -> np.ndarray:
        """What is known of each document of each split, for the documents of the mixture."""
        first = np.cumsum([0, *map(len, of_each)])[:-1]
        return np.concatenate(of_each)[first[self._split] + self._document]

    def parts(
        self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, marks: bool = False
    ) -> np.ndarray:
        """See :class:`newllm.data.shards.Documents`."""
        lengths = stops - starts
        read = np.empty(lengths.sum(), np.uint8 if marks else np.uint16)
        segment = np.repeat(np.arange(len(lengths)), lengths)
        of_split = self._split[documents]
        for number in np.unique(of_split).tolist():
            own = of_split == number
            where = self._document[documents[own]], starts[own], stops[own]
            read[own[segment]] = self._splits[number].parts(*where, marks=marks)
        return read


def _drawn(lengths: np.ndarray, tokens: float, rng: np.random.Generator) -> np.ndarray:
    """Documents with so many tokens in all, none twice before all were drawn once."""
    rounds = []
    while tokens > 0 and lengths.sum() > 0:
        order = rng.permutation(len(lengths)).astype(np.int32)
        reached = np.cumsum(lengths[order])
        rounds.append(order[: np.searchsorted(reached, tokens) + 1])
        tokens -= float(lengths[rounds[-1]].sum())
    return np.concatenate(rounds) if rounds else np.zeros(0, np.int32)
