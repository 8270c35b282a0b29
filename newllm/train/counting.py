"""Counts of the training rows: made once, pruned to a size, kept beside the encoded rows.

A row that was counted would find itself in the table, and a model trained so would trust the table
blindly. So there are several tables: one of all counted rows, for every row that was not counted,
and one for each fold of them, of the other folds' rows.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from newllm.data.ngrams import Documents, Level, estimate, predictable_ids, rank_ngrams
from newllm.data.prepare import ENCODING_VERSION, Encoded
from newllm.data.tokenizers import PAD
from newllm.files import write_bytes
from newllm.model.counts.table import (
    CHECK_VALUES,
    CONTEXT_BYTES,
    FOLLOWER_BYTES,
    MOST_CONTEXT,
    MOST_FOLLOWERS,
    REST_STEP,
    SMALLEST_ODDS,
    WEIGHT_STEP,
    StoredTable,
)
from newllm.model.recall.reference import HASH_FACTOR, HASH_PRIME

FOLDS = 4
"""A table without a fold knows three quarters of the rows."""

CONTEXTS_IN_SET = 8
"""Contexts that share a set, about."""

COUNTED_TOKENS = 8_000_000
"""Training tokens that are counted at most, evenly from a set's rows: bounds time and memory."""


_LEAST_BYTES = len(StoredTable.empty().pack())

_TOKENS_AT_ONCE = 8_000_000
"""Tokens of the tables that are made at the same time, each of which takes some 200 bytes."""


def count_tables(
    tokens: np.ndarray,
    offsets: np.ndarray,
    folds: np.ndarray,
    vocab_size: int,
    never_predicted: Sequence[int],
    budget: int,
) -> list[StoredTable]:
    """The table of all documents, and of each fold that of the other folds' documents.

    Args:
        tokens, offsets: as :class:`Documents` has them, [N] and [D + 1].
        folds: fold of each document, 0.., [D].
        vocab_size: V.
        never_predicted: ids that are never a target (PAD, BOS).
        budget: bytes of each table at most.
    """
    documents = Documents.checked(tokens, offsets, vocab_size)
    predictable = predictable_ids(vocab_size, never_predicted)
    orders = rank_ngrams(documents, MOST_CONTEXT + 1)
    suffixes = [order.suffix for order in orders]

    def without(fold: int | None) -> StoredTable:
        counted = None if fold is None else folds != fold
        levels = estimate(documents, orders, predictable, counted)
        return _pruned(levels, suffixes, vocab_size, predictable, budget)

    at_once = min(2, max(1, _TOKENS_AT_ONCE // max(1, len(tokens))))
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(without, (None, *range(int(folds.max(initial=-1)) + 1))))


def _pruned(
    levels: Sequence[Level],
    suffixes: Sequence[np.ndarray],
    vocab_size: int,
    predictable: np.ndarray,
    budget: int,
) -> StoredTable:
    """The followers that pay most for their bytes.

    What a follower is worth: how often it is expected, times by how much shorter contexts alone
    would make it less probable ("weighted difference": Seymore & Rosenfeld 1996, "Scalable backoff
    language models").
    """
    below = (levels[0].discounted + levels[0].passed_on[0] / predictable.sum()).astype(np.float32)
    parts, contexts_before = [], 0
    for number, level in enumerate(levels[1:], start=1):
        context = (level.keys // vocab_size).astype(np.int32)
        lower = below[suffixes[number]]
        discounted = level.discounted.astype(np.float32)
        passed_on = level.passed_on.astype(np.float32)[context]
        below = discounted + passed_on * lower
        expected = discounted * level.total[context].astype(np.float32)
        (seen,) = np.nonzero(expected > 0)
        without = (passed_on + discounted)[seen] * lower[seen]
        with np.errstate(divide="ignore"):
            worth = expected[seen] * np.log(below[seen] / without)
        keep = worth > 0
        parts.append((worth[keep], number, seen[keep], context[seen[keep]] + contexts_before))
        contexts_before += len(level.passed_on)
    worth = np.concatenate([part[0] for part in parts])
    order = np.concatenate([np.full(len(part[0]), part[1], np.int8) for part in parts])
    rank = np.concatenate([part[2] for part in parts]).astype(np.int32)
    context = np.concatenate([part[3] for part in parts]).astype(np.int32)
    most = min(len(worth), budget // FOLLOWER_BYTES)
    best = np.argpartition(-worth, most - 1)[:most] if most else np.zeros(0, np.int64)
    best = best[_order(_falling(worth[best]), context[best])]
    opens = np.zeros(len(best), bool)  # a context comes with its first follower
    first = np.zeros(contexts_before, np.int32)
    first[context[best][::-1]] = np.arange(len(best) - 1, -1, -1)  # the last one written stays
    opens[first[context[best]]] = True
    # Sets are a power of two: up to twice as many as their contexts ask for.
    size = np.cumsum(FOLLOWER_BYTES + opens * (CONTEXT_BYTES + 2 / CONTEXTS_IN_SET))
    best = best[: int(np.searchsorted(size, budget - _LEAST_BYTES, side="right"))]
    return _stored(levels, vocab_size, order[best], rank[best], context[best])


def _stored(
    levels: Sequence[Level],
    vocab_size: int,
    order: np.ndarray,
    rank: np.ndarray,
    context: np.ndarray,
) -> StoredTable:
    """Followers [E] of these orders (1: after one token), as a file has them."""
    probability, token = np.zeros(len(rank)), np.zeros(len(rank), np.uint16)
    for number, level in enumerate(levels):
        own = order == number
        probability[own] = level.discounted[rank[own]]
        token[own] = level.keys[rank[own]] % vocab_size
    # By context, the most frequent follower first; of very many the rest goes.
    sorted_ = np.argsort(token, kind="stable")
    falling = _falling(probability[sorted_].astype(np.float32))  # those of a context differ by more
    sorted_ = sorted_[_order(context[sorted_], falling)]
    order, rank, context, probability, token = (
        part[sorted_] for part in (order, rank, context, probability, token)
    )
    first = np.flatnonzero(np.diff(context, prepend=-1))
    place = np.arange(len(context)) - np.repeat(first, np.diff(first, append=len(context)))
    kept = place < MOST_FOLLOWERS
    order, rank, context, probability, token = (
        part[kept] for part in (order, rank, context, probability, token)
    )
    first = np.flatnonzero(np.diff(context, prepend=-1))
    counts = np.diff(first, append=len(context))
    if len(first) == 0:
        return StoredTable.empty()
    # Where each context goes: its order's sets, by its hash.
    per_order = max(1, len(first) // (MOST_CONTEXT * CONTEXTS_IN_SET))
    sets = 1 << (per_order - 1).bit_length()
    context_order = order[first].astype(np.int64)
    hashes = np.zeros(len(first), np.int64)
    for number in range(1, MOST_CONTEXT + 1):
        own = context_order == number
        node = levels[number].keys[rank[first[own]]] // vocab_size
        value = np.zeros(int(own.sum()), np.int64)
        for below in range(number - 1, -1, -1):
            token_of = levels[below].keys[node] % vocab_size
            value = (value * HASH_FACTOR + token_of + 1) % HASH_PRIME
            node = levels[below].keys[node] // vocab_size
        hashes[own] = value
    place = (context_order - 1) * sets + hashes % sets
    in_sets = np.bincount(place, minlength=MOST_CONTEXT * sets)
    assert in_sets.max() < 256, "a set counts its contexts in a byte"
    arranged = _order(place, hashes)
    starts = np.cumsum(counts[arranged]) - counts[arranged]
    followers = np.arange(len(context)) - np.repeat(starts, counts[arranged])
    followers += np.repeat(first[arranged], counts[arranged])
    mass = np.add.reduceat(probability, first)
    log_odds = np.log(np.maximum(1 - mass, 1e-9) / mass)
    weights = np.log(np.repeat(probability[first], counts) / probability)
    return StoredTable(
        sets=in_sets.astype(np.uint8),
        checks=(hashes[arranged] // sets % CHECK_VALUES).astype(np.uint16),
        followers=counts[arranged].astype(np.uint8),
        rests=_steps((log_odds[arranged] - SMALLEST_ODDS) / REST_STEP),
        tokens=token[followers],
        weights=_steps(weights[followers] / WEIGHT_STEP),
    )


def _order(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """What sorts by the one and then the other, both below 2^31 and not negative; stable.

    As `np.lexsort((then, first))` in a third of the time.
    """
    return np.argsort(first.astype(np.int64) << 32 | then, kind="stable")


def _falling(values: np.ndarray) -> np.ndarray:
    """Integers that fall as positive fp32 numbers rise."""
    return np.iinfo(np.int32).max - values.view(np.int32)


def _steps(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Counts:
    """Tables of counts for a training: one for each row."""

    tables: tuple[StoredTable, ...]
    """The table of all counted rows, and of each fold that of the other folds' rows."""
    table_of: tuple[np.ndarray, ...]
    """Number of the table for each document of each split, uint8 [D] each."""


def prepare_counts(trained_on: Sequence[Encoded], budget: int) -> Counts:
    """Count the training rows of these data sets, or find that done.

    Args:
        trained_on: the data set of a run and those that it rehearses, in one vocabulary.
        budget: bytes of a table at most.
    """
    splits = [data.splits["train"] for data in trained_on]
    shares = counted_shares([int(split.lengths.sum()) for split in splits])
    table_of = []
    for split, share in zip(splits, shares, strict=True):
        numbers, count = np.zeros(len(split), np.uint8), int(share * len(split))
        evenly = np.arange(count) * len(split) // max(1, count)
        numbers[evenly] = 1 + np.arange(count) % FOLDS
        table_of.append(numbers)
    key = f"{ENCODING_VERSION}:{budget}:{shares}:"
    key += ":".join(data.fingerprint for data in trained_on)
    name = f"counts-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    path = trained_on[0].folder / name
    tokenizer = trained_on[0].tokenizer
    tables = _read(path, tokenizer.vocab_size)
    if tables is None:
        runs = [
            (run, int(numbers[number]) - 1)
            for split, numbers in zip(splits, table_of, strict=True)
            for number in np.flatnonzero(numbers)
            for run in split.scored_runs(int(number))
        ]
        ids, folds = [run for run, _ in runs], np.array([fold for _, fold in runs], np.int64)
        tables = count_tables(
            np.concatenate(ids),
            np.concatenate([[0], np.cumsum([len(part) for part in ids])]),
            folds,
            tokenizer.vocab_size,
            (PAD, tokenizer.bos),
            budget,
        )
        _write(path, tables)
    return Counts(tuple(tables), tuple(table_of))


def counted_shares(tokens: Sequence[int]) -> list[float]:
    """Which share of the rows of each data set is counted, the trained one first.

    It has at least half of what is counted: else a level that comes late in a climb would find
    little of itself in its table.
    """
    own, others = tokens[0], sum(tokens[1:])
    for_own = max(COUNTED_TOKENS // 2, COUNTED_TOKENS - others)
    share = min(1.0, for_own / max(1, own))
    of_others = min(1.0, (COUNTED_TOKENS - share * own) / max(1, others))
    return [share] + [of_others] * (len(tokens) - 1)


def _write(path: Path, tables: Sequence[StoredTable]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, *(table.pack() for table in tables))
    write_bytes(path, buffer.getvalue())


def _read(path: Path, vocab_size: int) -> list[StoredTable] | None:
    """The tables that :func:`_write` wrote; None where there are none, or they are damaged."""
    try:
        with np.load(path) as parts:
            return [StoredTable.unpack(parts[name], vocab_size) for name in parts]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None


def describe(counts: Counts) -> str:
    """`785,327 contexts of up to 4 tokens and 1,557,952 followers, 7.9 MB`."""
    table = counts.tables[0]
    size = len(table.pack()) / 1e6
    return (
        f"{len(table.checks):,} contexts of up to {MOST_CONTEXT} tokens and "
        f"{len(table.tokens):,} followers, {size:.1f} MB"
    )
