"""From rows to batches: speed of each stage against the bare tokenizer's, and memory.

    newllm bench data dolly --data FOLDER
    newllm bench data ultrachat --data FOLDER --tokenizer word1000
    newllm bench data ultrachat --rows 1500000

Each stage contains those before it: reading the rows, making conversations of them, the whole
preparation (shards and hashes included) with a given vocabulary. The bare tokenizer encodes the
same text and does nothing else. Memory is that of a first preparation, vocabulary included, and of
the table of counts that a training makes of the prepared rows.

With --rows so many made-up dialogues of UltraChat's shape are written, prepared, counted and
trained on, and a tenth of them before: speed, memory of all processes together, disk, and whether
they grow with the rows (`benchmarks/full_size.py`). The files lie in the system's folder for such
(TMPDIR).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import click
import tokenizers

from benchmarks.dialogues import MEAN_CHARACTERS
from benchmarks.full_size import full_size
from benchmarks.measure import PeakMemory, Report, Row, report_options, rounds, setting_options
from newllm.config import Settings
from newllm.data.loader import EpochLoader
from newllm.data.located import Item, Located
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.data.tokenizers import BPE, Tokenizer, replace_surrogates
from newllm.datasets import DATASETS, find_dataset
from newllm.errors import UserError
from newllm.model.spec import COUNTS
from newllm.settings import resolve
from newllm.train.counting import prepare_counts

_BATCH_ROWS = 512
_LOADER_BATCHES = 500

_SETTINGS = ("data", "subset", "tokenizer", "vocab_size", "max_seq_length", "batch_size")


@click.command()
@click.argument("dataset", type=click.Choice(list(DATASETS)), metavar="DATASET")
@setting_options(*_SETTINGS)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1),
              help="Rounds, of which the median counts.")  # fmt: skip
@click.option("--rows", default=None, type=click.IntRange(min=10),
              help="Made-up dialogues in place of rows that are read (ultrachat).")  # fmt: skip
@click.option("--mean-characters", default=MEAN_CHARACTERS, show_default=True,
              type=click.IntRange(min=100), help="Of a made-up dialogue.")  # fmt: skip
@click.option("--minutes", default=0.5, show_default=True, type=click.FloatRange(min=0.001),
              help="Training on made-up dialogues.")  # fmt: skip
@report_options
def command(
    dataset: str,
    repeats: int,
    rows: int | None,
    mean_characters: int,
    minutes: float,
    **flags: Any,
) -> Report:
    if rows is not None:
        if dataset != "ultrachat":
            raise UserError(f"--rows: they are made up for ultrachat, not for {dataset}")
        size = flags["vocab_size"] or resolve(dataset, {}).vocab_size
        return full_size(rows, mean_characters, minutes, size)
    settings = resolve(dataset, {name: v for name, v in flags.items() if v is not None})
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        with PeakMemory() as memory:
            encoded = _prepare(settings, cache)
        first_seconds = time.perf_counter() - started
        started = time.perf_counter()
        with PeakMemory() as counting:
            prepare_counts([encoded], settings.counts or COUNTS)
        counting_seconds = time.perf_counter() - started
        counts = encoded.accounting.values()
        facts = {
            "data_set": dataset,
            "source": encoded.source,
            "tokenizer": settings.tokenizer,
            "rows": sum(count.rows for count in counts),
            "tokens": sum(count.tokens for count in counts),
            "content_bytes": sum(count.content_bytes for count in counts),
        }
        tables = {
            "Preparing": stages(settings, encoded.tokenizer, facts, repeats),
            "Memory of a first preparation": [_taken(first_seconds, memory)],
            "Table of counts": [_taken(counting_seconds, counting)],
            "Training batches": [loading(settings, encoded)],
        }
    return Report(tables, facts)


def _taken(seconds: float, memory: PeakMemory) -> Row:
    return {"seconds": seconds, "peak_mb": memory.peak_mb, "grown_mb": memory.grown_mb}


def stages(settings: Settings, tokenizer: Tokenizer, facts: Row, repeats: int) -> list[Row]:
    """Rows and bytes of content a second, stage by stage, over the bare tokenizer's."""
    encode = _bare(tokenizer)

    def tokenize() -> float:
        seconds = 0.0
        texts = (replace_surrogates(text)[0] for text in _texts(settings))
        while batch := list(islice(texts, _BATCH_ROWS)):
            started = time.perf_counter()
            encode(batch)
            seconds += time.perf_counter() - started
        return seconds

    def read() -> None:
        for rows in _splits(settings):
            for _ in rows:
                pass

    def converse() -> None:
        for _ in _texts(settings):
            pass

    def prepare() -> None:
        with tempfile.TemporaryDirectory() as cache:
            _prepare(settings, cache, tokenizer)

    candidates: dict[str, Callable[[], object]] = {
        "bare tokenizer": tokenize,
        "reading rows": read,
        "to conversations": converse,
        "whole preparation": prepare,
    }
    return [
        {
            "stage": timing.name,
            "seconds": timing.seconds,
            "rows_per_second": timing.per_second,
            "megabytes_per_second": facts["content_bytes"] / timing.seconds / 1e6,
            "spread": timing.spread,
            "ratio_to_bare_tokenizer": timing.ratio,
        }
        for timing in rounds(candidates, repeats, work=facts["rows"])
    ]


def loading(settings: Settings, encoded: Encoded) -> Row:
    """The batches of one epoch (its first part), as training takes them."""
    started = time.perf_counter()
    loader = EpochLoader(
        encoded.splits["train"], settings.max_seq_length, settings.batch_size, (settings.seed, 0)
    )
    planned = time.perf_counter()
    batches, scored = 0, 0
    for batch in islice(loader.batches(), _LOADER_BATCHES):
        batches, scored = batches + 1, scored + batch.scored
    seconds = time.perf_counter() - planned
    return {
        "rows_in_batch": settings.batch_size,
        "row_length": settings.max_seq_length,
        "batches_in_epoch": len(loader),
        "seconds_to_plan": planned - started,
        "batches_per_second": batches / seconds,
        "tokens_per_second": scored / seconds,
        "filled_share": scored / (batches * settings.batch_size * settings.max_seq_length),
    }


def _prepare(settings: Settings, cache: str, tokenizer: Tokenizer | None = None) -> Encoded:
    """Encode from nothing, into a cache of its own."""
    before = os.environ.get("NEWLLM_CACHE")
    os.environ["NEWLLM_CACHE"] = cache
    try:
        source = open_source(find_dataset(settings.dataset), settings.data, settings.subset)
        return prepare_training(source, Encoding.of(settings), tokenizer)
    finally:
        if before is None:
            del os.environ["NEWLLM_CACHE"]
        else:
            os.environ["NEWLLM_CACHE"] = before


def _splits(settings: Settings) -> Iterator[Iterator[Item]]:
    source = open_source(find_dataset(settings.dataset), settings.data, settings.subset)
    return (rows() for rows in source.training_splits())


def _texts(settings: Settings) -> Iterator[str]:
    """Every text that the preparation tokenizes, in its order."""
    rows_of, flat = find_dataset(settings.dataset), settings.tokenizer == "word1000"
    for rows in _splits(settings):
        for item in rows:
            if not isinstance(item, Located):
                continue
            try:
                if flat:
                    yield rows_of.protocol_text(item.row)
                else:
                    yield from (m["content"] for m in rows_of.conversation(item.row))
            except ValueError:  # a malformed row, which the preparation counts
                continue


def _bare(tokenizer: Tokenizer) -> Callable[[list[str]], object]:
    """The quickest way to the ids of a list of texts: the library's, without ours around it."""
    if not isinstance(tokenizer, BPE):
        return tokenizer.encode_batch
    library = tokenizers.Tokenizer.from_str(tokenizer.to_dict()["definition"])
    return lambda texts: library.encode_batch_fast(texts, add_special_tokens=False)
