"""Facts told in an earlier turn and asked for later: how many are answered right.

    newllm bench told --checkpoint FILE --data FOLDER

A conversation begins with a fact ("Hi, my name is Kaito."), goes on with so many other exchanges
from the validation rows, and ends with the question. Names stand in the built-in rows ("known") or
in none of them ("new"); so with colours and numbers. The answer, at temperature 0, is right if it
has the word that was told. "Begun": the answer's first words are given ("Your name is"), and the
next one is to be the word; this asks for the memory alone, not whether the question is understood.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from operator import contains

import click
import torch

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.probe_tasks import exchanges
from newllm.data.located import Located
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.datasets.conversations import Conversation
from newllm.inference.greedy import greedy_answers
from newllm.trained import TrainedModel

TOLD = {
    "name, known": (
        "Hi, my name is {}.", "Hi {}, how can I help you?", "What is my name?", "Your name is",
        ("Lena", "Oscar", "Mara", "Anna", "Peter"),
    ),
    "name, new": (
        "Hi, my name is {}.", "Hi {}, how can I help you?", "What is my name?", "Your name is",
        ("Kaito", "Zelda", "Yaroslav", "Brynn", "Ottokar"),
    ),
    "colour": (
        "My favourite colour is {}.", "I like {} too.", "What is my favourite colour?",
        "Your favourite colour is", ("green", "purple", "turquoise", "red", "ochre"),
    ),
    "number": (
        "My favourite number is {}.", "I like {} too.", "What is my favourite number?",
        "Your favourite number is", ("47", "381", "12", "905", "66"),
    ),
}  # fmt: skip
"""Kind -> what is said, answered, asked later, the answer's first words, the values."""

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
                if not any(word in text for word in ("name", "favourite")):
                    found.append(exchange)
    return cycle(found)


@torch.inference_mode()
def right(
    trained: TrainedModel, data: str, kind: str, between: int, tokens: int
) -> tuple[float, float]:
    """Fractions of a kind's facts that are answered right so many exchanges or tokens later: by
    itself, and where the answer is begun."""
    said, answered, asked, begins, values = TOLD[kind]
    others, prompts = distractors(trained, data), []
    first_words = trained.tokenizer.encode_batch([begins])[0]
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
    begun = [[*prompt, *first_words] for prompt in prompts]
    answers = [
        [answer.text.strip() for answer in greedy_answers(
            trained.model, trained.tokenizer, each, ANSWER_TOKENS
        )]
        for each in (prompts, begun)
    ]  # fmt: skip
    progress(f"{kind}, {between} between: {answers}")
    return (
        sum(map(contains, answers[0], values)) / len(values),
        sum(map(str.startswith, answers[1], values)) / len(values),
    )


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
            scores = {f"{between}_between": right(trained, data, kind, between, 0)
                      for between in BETWEEN}  # fmt: skip
            scores[f"{FAR_TOKENS}_tokens"] = right(trained, data, kind, 0, FAR_TOKENS)
            for place, form in enumerate(("answered", "begun")):
                table.append(
                    {
                        "model": trained.path.stem.removeprefix("best_"),
                        "recall_slots": trained.settings.recall_slots,
                        "told": kind,
                        "form": form,
                        **{column: each[place] for column, each in scores.items()},
                    }
                )
    return Report({"Told and asked later": table})
