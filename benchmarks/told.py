"""Facts told in an earlier turn and asked for later: how many are answered right.

    newllm bench told --checkpoint FILE --data FOLDER

A conversation begins with a fact ("Hi, my name is Kaito."), goes on with so many other exchanges
from the validation rows, and ends with the question. Names stand in the built-in rows ("known") or
in none of them ("new"); so with colours and numbers. The answer, at temperature 0, is right if it
has the word that was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import click
import torch

from benchmarks.measure import Report, Row, progress, report_options
from newllm.data.rows import Located
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.datasets.conversations import Conversation
from newllm.evaluate.probes import exchanges
from newllm.inference.greedy import greedy_answers
from newllm.trained import TrainedModel

TOLD = {
    "name, known": (
        "Hi, my name is {}.", "Hi {}, how can I help you?", "What is my name?",
        ("Lena", "Oscar", "Mara", "Anna", "Peter"),
    ),
    "name, new": (
        "Hi, my name is {}.", "Hi {}, how can I help you?", "What is my name?",
        ("Kaito", "Zelda", "Yaroslav", "Brynn", "Ottokar"),
    ),
    "colour": (
        "My favourite colour is {}.", "I like {} too.", "What is my favourite colour?",
        ("green", "purple", "turquoise", "red", "ochre"),
    ),
    "number": (
        "The number of my room is {}.", "Thank you, I will remember it.",
        "What is the number of my room?", ("47", "381", "12", "905", "66"),
    ),
}  # fmt: skip
"""Kind -> what is said, what is answered, what is asked later, the values."""

BETWEEN = (0, 1, 5, 20)
FAR_TOKENS = 10_000
ANSWER_TOKENS = 40


def distractors(trained: TrainedModel, data: str) -> Iterator[Conversation]:
    """Exchanges of the validation rows that are about something else, again and again."""
    level = find_dataset(trained.settings.dataset)
    found = []
    for item in open_source(level, data).evaluation_split()():
        if isinstance(item, Located):
            for exchange in exchanges(level.conversation(item.row)):
                text = " ".join(message["content"] for message in exchange)
                if not any(word in text for word in ("name", "colour", "room")):
                    found.append(exchange)
    return cycle(found)


@torch.inference_mode()
def right(trained: TrainedModel, data: str, kind: str, between: int, tokens: int) -> float:
    """Fraction of a kind's facts that are answered right, so many exchanges or tokens later."""
    said, answered, asked, values = TOLD[kind]
    others, prompts = distractors(trained, data), []
    for value in values:
        conversation: Conversation = [
            {"role": "user", "content": said.format(value)},
            {"role": "assistant", "content": answered.format(value)},
        ]
        for exchange in islice(others, between):
            conversation += exchange
        question: Conversation = [{"role": "user", "content": asked}]
        while len(trained.renderer.prompt(conversation + question)) < tokens:
            conversation += next(others)
        prompts.append(trained.renderer.prompt(conversation + question))
    answers = greedy_answers(trained.model, trained.tokenizer, prompts, ANSWER_TOKENS)
    hits = [value in answer.text for value, answer in zip(values, answers, strict=True)]
    progress(f"{kind}, {between} between: {[answer.text for answer in answers]}")
    return sum(hits) / len(hits)


@click.command()
@click.option("--checkpoint", "checkpoints", metavar="FILE", multiple=True, required=True,
              help="A model of dialogues (may be repeated).")  # fmt: skip
@click.option("--data", default="sample", show_default=True,
              help="Where the dialogues are: a path, hub or sample.")  # fmt: skip
@report_options
def command(checkpoints: tuple[str, ...], data: str) -> Report:
    table: list[Row] = []
    for file in checkpoints:
        trained = TrainedModel.load(file, "cpu")
        for kind in TOLD:
            row: Row = {
                "model": trained.path.stem.removeprefix("best_"),
                "recall_slots": trained.settings.recall_slots,
                "told": kind,
            }
            for between in BETWEEN:
                row[f"{between}_between"] = right(trained, data, kind, between, 0)
            row[f"{FAR_TOKENS}_tokens"] = right(trained, data, kind, 0, FAR_TOKENS)
            table.append(row)
    return Report({"Told and asked later": table})
