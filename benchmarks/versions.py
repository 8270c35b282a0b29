"""This server beside an older version's, asked in turns.

    newllm bench versions --checkpoint FILE --against CLONE

The file is one that both read; the clone is a folder with the older source. Clients are those of
`newllm bench serve`: answers of fixed length, all at once. First text: from the request to the
first text of a streamed answer, over a connection that is kept.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import httpx

from benchmarks.measure import Report, Row, report_options, rounds
from benchmarks.serve import CHAT, CLIENTS, running_server
from newllm.trained import TrainedModel

REPEATS = 7
STREAMS = 10
"""Streamed answers of one round."""


@click.command()
@click.option("--checkpoint", required=True, metavar="FILE", help="A model that both can read.")
@click.option("--against", required=True, metavar="CLONE", help="Folder of the older source.",
              type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--answer-tokens", default=60, show_default=True, type=click.IntRange(min=1),
              help="Length of every answer.")  # fmt: skip
@report_options
def command(checkpoint: str, against: Path, answer_tokens: int) -> Report:
    model = TrainedModel.load(checkpoint, "cpu")
    name, file = model.path.stem, str(model.path.resolve())
    rows: list[Row] = []
    with (
        running_server(file, clone=against.resolve()) as older,
        running_server(file) as newer,
        httpx.Client(base_url=older.url, timeout=120, trust_env=False) as old,
        httpx.Client(base_url=newer.url, timeout=120, trust_env=False) as new,
    ):
        for count in CLIENTS:
            works: dict[str, Callable[[], object]] = {
                "older": lambda n=count: asyncio.run(_together(older.url, name, n, answer_tokens)),
                "this": lambda n=count: asyncio.run(_together(newer.url, name, n, answer_tokens)),
            }
            was, now = rounds(works, REPEATS, work=count * answer_tokens)
            rows.append(_row(f"{count} clients, tokens/s", was.per_second, now.per_second,
                             now.ratio))  # fmt: skip
        for what, part in (("first text, ms", 0), ("whole stream, ms", 1)):
            works = {
                "older": lambda p=part: _streamed(old, name, answer_tokens)[p],
                "this": lambda p=part: _streamed(new, name, answer_tokens)[p],
            }
            was, now = rounds(works, REPEATS)
            rows.append(_row(what, 1e3 * was.seconds, 1e3 * now.seconds, 1 / now.ratio))
    facts = {"model": checkpoint, "against": str(against), "parameters": model.parameters}
    return Report({"Beside the older version": rows}, facts)


def _row(what: str, older: float, this: float, ratio: float) -> Row:
    return {"what": what, "older": older, "this": this, "ratio": ratio}


def _body(name: str, tokens: int, number: int, stream: bool) -> Row:
    messages = [{"role": "user", "content": f"Question {number}: what is a river?"}]
    return {"model": name, "messages": messages, "max_tokens": tokens, "min_tokens": tokens,
            "seed": number, "stream": stream}  # fmt: skip


async def _together(url: str, name: str, count: int, tokens: int) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        answers = await asyncio.gather(
            *(client.post(CHAT, json=_body(name, tokens, n, False)) for n in range(count))
        )
    for answer in answers:
        answer.raise_for_status()


def _streamed(client: httpx.Client, name: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first text and to the end, medians of some answers."""
    firsts, wholes = [], []
    for number in range(STREAMS):
        started, first = time.perf_counter(), None
        with client.stream("POST", CHAT, json=_body(name, tokens, number, True)) as stream:
            for line in stream.iter_lines():
                if first is None and line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        first = time.perf_counter() - started
        wholes.append(time.perf_counter() - started)
        firsts.append(wholes[-1] if first is None else first)
    return sorted(firsts)[STREAMS // 2], sorted(wholes)[STREAMS // 2]
