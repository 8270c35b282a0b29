"""Located rows to a block of encoded documents: the part of the preparation that is all work.

A block depends on its rows alone, so that blocks can be made anywhere and in any number at once.
Nothing is dropped silently: the accounting says how many rows came in, how many were malformed and
where, and how many tokens were kept and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

import numpy as np

from newllm.data.render import ChatRenderer, Document, make_renderer, render_rows
from newllm.data.rows import Item, Malformed
from newllm.data.tokenizers import Tokenizer, Word1000
from newllm.datasets import find_dataset
from newllm.datasets.conversations import LeftOut

BLOCK_ROWS = 512
"""Rows encoded together; a shard ends with a block."""

_MALFORMED_SHOWN = 20


@dataclass
class Accounting:
    """What became of the rows of one split."""

    rows: int = 0
    malformed: int = 0
    left_out: int = 0
    """Rows that the data set's protocol does not use."""
    documents: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    """Tokens that are predicted: all but the first of each document."""
    cut_rows: int = 0
    cut_tokens: int = 0
    unk_tokens: int = 0
    content_bytes: int = 0
    assistant_bytes: int = 0
    replaced_surrogates: int = 0
    malformed_examples: list[str] = field(default_factory=list)

    def complain(self, item: Malformed) -> None:
        """Count a malformed row and keep the first few for showing."""
        self.malformed += 1
        if len(self.malformed_examples) < _MALFORMED_SHOWN:
            self.malformed_examples.append(f"{item.where}: {item.reason}")

    def __iadd__(self, later: Accounting) -> Accounting:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(later, item.name))
        del self.malformed_examples[_MALFORMED_SHOWN:]
        return self


@dataclass(frozen=True)
class Block:
    """Several documents as arrays, and what became of their rows."""

    tokens: np.ndarray
    """Ids of all documents, one after the other, [N] uint16."""
    assistant: np.ndarray
    """Tokens an assistant has to produce, [N] bool."""
    documents: np.ndarray
    """Tokens, content bytes and assistant bytes of each, [D, 3] int64."""
    accounting: Accounting

    @classmethod
    def of(cls, documents: Sequence[Document], accounting: Accounting) -> Block:
        """Put documents one after the other."""
        table = [(len(d.ids), d.content_bytes, d.assistant_bytes) for d in documents]
        size = sum(length for length, _, _ in table)
        masks = chain.from_iterable(document.assistant for document in documents)
        return cls(
            np.fromiter(chain.from_iterable(d.ids for d in documents), np.uint16, size),
            np.fromiter(masks, bool, size),
            np.array(table, np.dtype("<i8")).reshape(-1, 3),
            accounting,
        )


class Encoder:
    """Makes blocks of the rows of one split.

    Args:
        tokenizer: the vocabulary.
        dataset: whose rows they are.
        length: tokens a word-1000 row is cut at (BPE rows are never cut).
    """

    def __init__(self, tokenizer: Tokenizer, dataset: str, length: int) -> None:
        self.tokenizer, self.dataset, self.length = tokenizer, dataset, length
        self._format = find_dataset(dataset)
        self._renderer = make_renderer(tokenizer, self._format, length)
        chat = isinstance(self._renderer, ChatRenderer)
        self._read = self._format.conversation if chat else self._format.protocol_text

    def __call__(self, items: Sequence[Item]) -> Block:
        """Encode rows; malformed ones are counted."""
        counts = Accounting()
        rows = list(usable_rows(items, self._read, counts))
        documents = render_rows(self._renderer, self._format, rows)
        block = Block.of(documents, counts)
        counts.documents = len(documents)
        counts.tokens = len(block.tokens)
        counts.scored_tokens = counts.tokens - counts.documents
        counts.content_bytes, counts.assistant_bytes = block.documents[:, 1:].sum(0).tolist()
        for document in documents:
            counts.cut_rows += document.cut_tokens > 0
            counts.cut_tokens += document.cut_tokens
            counts.replaced_surrogates += document.replaced_surrogates
        if isinstance(self.tokenizer, Word1000):
            counts.unk_tokens = int((block.tokens == self.tokenizer.unk).sum())
        return block


def usable_rows(
    items: Iterable[Item], read: Callable[[dict[str, Any]], object], accounting: Accounting
) -> Iterator[dict[str, Any]]:
    """The well-formed rows; the others are counted and remembered with their place."""
    for item in items:
        accounting.rows += 1
        if isinstance(item, Malformed):
            accounting.complain(item)
            continue
        try:
            read(item.row)
        except LeftOut:
            accounting.left_out += 1
            continue
        except ValueError as error:
            accounting.complain(Malformed(item.where, str(error)))
            continue
        yield item.row
