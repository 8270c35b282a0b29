"""One BPE vocabulary for several data sets, learnt from equally many bytes of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from newllm.data.encode import Accounting, usable_rows
from newllm.data.prepare import TOKENIZER_BYTES
from newllm.data.sources import Source
from newllm.data.tokenizers import BPE, Tokenizer, from_dict
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.files import write_text

_LARGEST_FILE = 2**26
"""Bytes of a tokenizer file at most."""


@dataclass(frozen=True)
class JointTokenizer:
    """A trained vocabulary, and what it was trained on."""

    tokenizer: BPE
    bytes_of_each: int
    """UTF-8 bytes that were read of every data set: all that the smallest one has."""


def train_joint(sources: Mapping[str, Source], vocab_size: int) -> JointTokenizer:
    """Train on the contents of the training rows of each data set, from the first on.

    Args:
        sources: data set -> where its rows are.
        vocab_size: entries, special tokens included.

    Raises:
        UserError: a data set has no usable row.
    """
    most = TOKENIZER_BYTES // max(1, len(sources))
    share = most
    for dataset, source in sources.items():
        size = sum(len(text.encode(errors="replace")) for text in _texts(dataset, source, most))
        if size == 0:
            raise UserError(f"{source.description}: no usable training row of {dataset}")
        share = min(share, size)

    def contents() -> Iterator[str]:
        for dataset, source in sources.items():
            yield from _texts(dataset, source, share)

    return JointTokenizer(BPE.train(contents(), vocab_size), share)


def _texts(dataset: str, source: Source, size: int) -> Iterator[str]:
    """Messages of the first training rows, up to so many bytes (the last one cut)."""
    row_format = find_dataset(dataset)
    rows, _ = source.training_splits()
    for row in usable_rows(rows(), row_format.conversation, Accounting()):
        for message in row_format.conversation(row):
            text = message["content"].encode(errors="replace")[:size]
            size -= len(text)
            yield text.decode(errors="ignore")
            if size <= 0:
                return


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer file."""
    write_text(path, json.dumps(tokenizer.to_dict(), ensure_ascii=False))


def load(path: Path) -> Tokenizer:
    """Read a tokenizer file.

    Raises:
        UserError: missing, or no tokenizer.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path}: larger than any tokenizer file")
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such tokenizer file; make one with newllm tokenizer train"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError:
        raise
    except Exception:  # the tokenizers library raises bare exceptions
        raise UserError(f"{path}: not a tokenizer file of newllm tokenizer train") from None
