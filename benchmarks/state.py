"""Memory and speed of a conversation against its length: both should stay where they are.

python benchmarks/state.py CHECKPOINT --tokens 100000
"""

from __future__ import annotations

import argparse
import time

import psutil

import newllm
from newllm.chat.sampling import Sampling

MARKS = (100, 1_000, 10_000, 100_000, 1_000_000)


def main() -> None:
    """Write one endless answer and print a row at each power of ten."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, default=100_000)
    arguments = parser.parse_args()
    session = newllm.load(arguments.checkpoint, "cpu").chat(Sampling(seed=0))
    process = psutil.Process()
    print("| tokens written | resident MB | state bytes | tokens/s since the row above |")
    print("|---|---|---|---|")
    started, before = time.perf_counter(), 0
    text = session.stream(
        "Tell me a story.", max_new_tokens=arguments.tokens, min_new_tokens=arguments.tokens
    )
    prompt = None
    for _ in text:
        prompt = session.tokens_read if prompt is None else prompt
        written = session.tokens_read - prompt + 1
        if written in MARKS and written != before:
            now = time.perf_counter()
            speed = (written - before) / (now - started)
            resident = process.memory_info().rss / 1e6
            print(f"| {written:,} | {resident:.1f} | {session.state_bytes:,} | {speed:,.0f} |")
            started, before = now, written


if __name__ == "__main__":
    main()
