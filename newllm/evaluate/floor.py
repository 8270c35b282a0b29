"""The n-gram floor of a data set: what counting alone reaches on the same tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from newllm.data.prepare import Encoded
from newllm.data.shards import EncodedSplit
from newllm.data.tokenizers import PAD, Tokenizer
from newllm.evaluate.metrics import bits_per_byte, perplexity
from newllm.evaluate.ngram import NgramTable
from newllm.files import write_text

ORDERS = {"word1000": 3, "bpe": 5}
"""Tokens of context plus one: words carry more than pieces of words."""

_COUNTED_TOKENS = 4_000_000
"""Training tokens the table counts at most (the first ones), to bound time and memory (600 MB)."""

_SCORED_AT_ONCE = 500_000
"""Tokens of validation rows in memory at a time."""


@dataclass(frozen=True)
class Floor:
    """The score of the n-gram table."""

    order: int
    ppl: float
    bpb: float | None


def ngram_floor(trained_on: Encoded, split: EncodedSplit | None = None) -> Floor:
    """Count the training rows, score the validation rows (or `split`, encoded likewise).

    The result for the data set's own validation rows is kept beside the shards.
    """
    stored = trained_on.folder / "ngram.json"
    if split is None and stored.exists():
        return Floor(**json.loads(stored.read_text(encoding="utf-8")))
    own = split is None
    split = split or trained_on.splits["validation"]
    tokenizer = trained_on.tokenizer
    floor = _score(tokenizer, trained_on.splits["train"], split)
    if own:
        write_text(stored, json.dumps(asdict(floor)))
    return floor


def _score(tokenizer: Tokenizer, train: EncodedSplit, split: EncodedSplit) -> Floor:
    table = NgramTable.fit(
        *next(train.stretches(_COUNTED_TOKENS)),
        order=ORDERS[tokenizer.kind],
        vocab_size=tokenizer.vocab_size,
        never_predicted=(PAD, tokenizer.bos),
    )
    stretches = split.stretches(_SCORED_AT_ONCE)
    nats = sum(float(table.nats(*stretch).sum()) for stretch in stretches)
    scored = int(split.lengths.sum()) - len(split)
    lossless = tokenizer.kind == "bpe"
    return Floor(
        order=ORDERS[tokenizer.kind],
        ppl=perplexity(nats / scored),
        bpb=bits_per_byte(nats, int(split.content_bytes.sum())) if lossless else None,
    )
