"""Blocks of a split, made by as many processes as there are cores, in the order of the rows.

The first blocks are made here, so that a small data set never waits for a process to start. Each
worker is a fresh interpreter at the end of two pipes: nothing is inherited from this one (its
threads, its main script), and it ends by itself when this process does, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any

from newllm.data.encode import BLOCK_ROWS, Block, Encoder
from newllm.data.rows import Item
from newllm.data.tokenizers import from_dict
from newllm.errors import UserError

ALONE_BLOCKS = 32
"""Blocks after which workers are worth their start: seconds of work, over a start's second."""

_START = "from newllm.data.workers import work; work()"


def encode_blocks(
    items: Iterable[Item], encoder: Encoder, workers: int | None = None
) -> Generator[Block, None, None]:
    """Encode rows block by block; the blocks are the same whatever the number of workers.

    Args:
        items: the rows, read as they are needed: some blocks a worker are under way at a time.
        encoder: makes a block of rows.
        workers: processes (default: the cores this process may use); 1 is this process alone.

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
    with contextlib.closing(_Pool(encoder, count)) as pool:
        under_way: deque[Future[Block]] = deque([pool.submit(first)])
        for batch in batches:
            under_way.append(pool.submit(batch))
            if len(under_way) > 2 * count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Pool:
    """Processes, and a thread for each that hands it rows and takes its blocks."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(encoder) for _ in range(count)]
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, items: list[Item]) -> Future[Block]:
        return self._threads.submit(self._run, items)

    def _run(self, items: list[Item]) -> Block:
        worker = self._free.get()
        try:
            return worker.encode(items)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End the processes, also in the middle of their work."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process that makes blocks."""

    def __init__(self, encoder: Encoder) -> None:
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",  # the processes are what runs side by side
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
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
                _answer(encoder, pickle.load(requests), answers)


def _answer(encoder: Encoder, items: list[Item], answers: IO[bytes]) -> None:
    try:
        answer: Block | str = encoder(items)
    except Exception:
        answer = traceback.format_exc()
    pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()
