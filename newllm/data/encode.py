"""Located rows to blocks of encoded documents, by as many processes as there are cores.

A block depends on its rows alone, so that blocks can be made anywhere and in any number at once;
they come in the order of the rows. The first ones are made in this process, so that a small data
set never waits for another to start.

Nothing is dropped silently: the accounting says how many rows came in, how many were malformed and
where, and how many tokens were kept and cut.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from newllm.cores import usable_cores
from newllm.data.located import Item, Malformed, Repeated
from newllm.data.render import ChatRenderer, Document, make_renderer, render_rows
from newllm.data.tokenizers import Tokenizer, Word1000, from_dict
from newllm.datasets import find_dataset
from newllm.datasets.conversations import LeftOut, tool_calls
from newllm.errors import UserError

BLOCK_ROWS = 512
"""Rows encoded together; a shard ends with a block."""

ALONE_BLOCKS = 32
"""Blocks after which workers are worth their start: seconds of work, over a start's second."""

ANSWERED, MASKED = 1, 2
"""Marks of tokens: an assistant has to produce it; it is read, not scored. All others have 0."""

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
    masked_tokens: int = 0
    """Tokens of answers with weight 0, read but not scored."""
    tool_calls: int = 0
    """Messages that call a tool, or are what a tool says: left out."""
    repeated: int = 0
    """Validation rows that stand in training too."""
    malformed_examples: list[str] = field(default_factory=list)

    def complain(self, item: Malformed) -> None:
        """Count a malformed row and keep the first few for showing."""
        self.malformed += 1
        if len(self.malformed_examples) < _MALFORMED_SHOWN:
            self.malformed_examples.append(f"{item.where}: {item.reason}")

    def exceptions(self, split: str, decontaminated: bool) -> dict[str, str]:
        """Rows and messages that were left out or changed, as name -> words."""
        found = {}
        if self.left_out:
            found[f"{split} rows not used by the protocol"] = f"{self.left_out:,}"
        if self.masked_tokens:
            found[f"{split} answers of weight 0"] = f"{self.masked_tokens:,} tokens, not scored"
        if self.tool_calls:
            found[f"{split} tool calls and thoughts"] = f"{self.tool_calls:,} messages left out"
        if self.repeated:
            found[f"{split} rows that stand in training too"] = f"{self.repeated:,}, " + (
                "left out" if decontaminated else "scored all the same: --decontaminate"
            )
        if self.replaced_surrogates:
            found[f"{split} lone surrogates"] = f"{self.replaced_surrogates:,} replaced"
        return found

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
    """`ANSWERED`, `MASKED` or 0 of each, [N] uint8."""
    documents: np.ndarray
    """Tokens, content bytes and assistant bytes of each, [D, 3] int64."""
    accounting: Accounting

    @classmethod
    def of(cls, documents: Sequence[Document], accounting: Accounting) -> Block:
        """Put documents one after the other."""
        table = [(len(d.ids), d.content_bytes, d.assistant_bytes) for d in documents]
        size = sum(length for length, _, _ in table)
        marks = np.fromiter(chain.from_iterable(d.assistant for d in documents), np.uint8, size)
        start = 0
        for document in documents:
            for part in document.masked:
                marks[start + part.start : start + part.stop] = MASKED
            start += len(document.ids)
        return cls(
            np.fromiter(chain.from_iterable(d.ids for d in documents), np.uint16, size),
            marks,
            np.array(table, np.dtype("<i8")).reshape(-1, 3),
            accounting,
        )


class Encoder:
    """Makes blocks of a data set's rows; `length` is where word-1000 rows are cut (BPE: never)."""

    def __init__(self, tokenizer: Tokenizer, dataset: str, length: int) -> None:
        self.tokenizer, self.dataset, self.length = tokenizer, dataset, length
        self._dataset = find_dataset(dataset)
        self._renderer = make_renderer(tokenizer, self._dataset, length)
        chat = isinstance(self._renderer, ChatRenderer)
        self._read = self._dataset.conversation if chat else self._dataset.protocol_text

    def __call__(self, items: Sequence[Item]) -> Block:
        """Encode rows; malformed ones are counted."""
        counts = Accounting()
        rows = list(usable_rows(items, self._read, counts))
        documents = render_rows(self._renderer, self._dataset, rows)
        block = Block.of(documents, counts)
        counts.documents = len(documents)
        counts.tokens = len(block.tokens)
        counts.masked_tokens = int((block.assistant == MASKED).sum())
        counts.scored_tokens = counts.tokens - counts.documents - counts.masked_tokens
        counts.tool_calls = sum(map(tool_calls, rows))
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
        if isinstance(item, Repeated):
            accounting.repeated += 1
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


# -- several processes ---------------------------------------------------------------------------


def encode_blocks(
    items: Iterable[Item], encoder: Encoder, workers: int | None = None
) -> Generator[Block, None, None]:
    """Encode rows block by block; the blocks are the same whatever the number of workers.

    Rows are read as they are needed: some blocks a worker are under way at a time. `workers` are
    processes (default: the cores this process may use); 1 is this process alone.

    Raises:
        UserError: a worker was ended from outside.
    """
    source = iter(items)
    batches = iter(lambda: list(islice(source, BLOCK_ROWS)), [])
    count = usable_cores() if workers is None else workers
    alone = ALONE_BLOCKS if workers is None else 0
    yield from map(encoder, batches if count < 2 else islice(batches, alone))
    first = next(batches, None)
    if first is None:
        return
    with _pool(encoder, count) as submit:
        under_way = deque([submit(first)])
        for batch in batches:
            under_way.append(submit(batch))
            if len(under_way) > 2 * count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


@contextlib.contextmanager
def _pool(encoder: Encoder, count: int) -> Iterator[Callable[[list[Item]], Future[Block]]]:
    """Processes, and a thread for each that hands it rows; they end with the block, also mid-work.

    Not a `ProcessPoolExecutor`: its spawned workers run the user's main script again, which fails
    without a `__main__` guard, and outlive this process when it is killed.
    """
    workers = [_Worker(encoder) for _ in range(count)]
    free = deque(workers)  # as many as threads: whichever runs finds one
    threads = ThreadPoolExecutor(count)

    def encode(items: list[Item]) -> Block:
        worker = free.popleft()
        try:
            return worker.encode(items)
        finally:
            free.append(worker)

    try:
        yield lambda items: threads.submit(encode, items)
    finally:
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """One process that makes blocks: a fresh interpreter at the end of two pipes.

    It inherits nothing of this process (threads, main script), and ends by itself when its input
    does, however this process ends.
    """

    def __init__(self, encoder: Encoder) -> None:
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",  # the processes are what runs side by side
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from newllm.data.encode import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        with contextlib.suppress(OSError):  # it is dead already, which the first rows will show
            self._send((encoder.tokenizer.to_dict(), encoder.dataset, encoder.length))

    def encode(self, items: list[Item]) -> Block:
        try:
            self._send(items)
            assert self._process.stdout is not None
            answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self._process.wait()
            raise UserError(
                f"a process that encoded rows was ended (code {code}; out of memory?); give the "
                "same command again, and it goes on from the last finished shard"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"in a worker process:\n{answer}")
        return answer

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not sent is no longer wanted
                pipe.close()

    def _send(self, what: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(what, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()


def work() -> None:
    """What a worker process does: rows from its standard input, blocks to its standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends this one
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # nothing that a library prints may come between
        with contextlib.suppress(EOFError, BrokenPipeError):
            stored, dataset, length = pickle.load(requests)
            encoder = Encoder(from_dict(stored), dataset, length)
            while True:
                items = pickle.load(requests)
                try:
                    answer: Block | str = encoder(items)
                except Exception:
                    answer = traceback.format_exc()
                pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
                answers.flush()
