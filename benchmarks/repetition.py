"""How much answers repeat themselves, by temperature and penalty, with and without recall.

    newllm bench repetition --checkpoint FILE --checkpoint FILE --data FOLDER

The first question of so many validation dialogues is answered, up to 120 tokens. "repeated" is the
fraction of runs of three tokens that stood earlier in the same answer, "distinct" that of words
that are not in it a second time. A model that looks into its own answer ("own words: looked up")
does so only here: everywhere else it looks into what it has read.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks.measure import Report, Row, progress, report_options
from newllm.data.located import Located
from newllm.data.sources import open_source
from newllm.data.tokenizers import never_written
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.inference.decoder import Stream, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.trained import TrainedModel

TEMPERATURES, PENALTIES = (0.0, 0.7, 1.0), (1.0, 1.1, 1.3)
ANSWER_TOKENS = 120


class LooksIntoItself(Stream):
    """A stream whose recall knows the answer while it is written."""

    def begin_answer(self) -> None:
        self.recalled = 0


def questions(trained: TrainedModel, data: str, count: int) -> list[list[int]]:
    """Prompts of the first messages of validation dialogues, as ids."""
    level = find_dataset(trained.settings.dataset)
    prompts = []
    for item in open_source(level, data).evaluation_split()():
        if isinstance(item, Located) and len(prompts) < count:
            first = next(m for m in level.conversation(item.row) if m["role"] == "user")
            prompts.append(trained.renderer.prompt([first]))
    return prompts


def repeated(tokens: Sequence[int]) -> tuple[int, int]:
    """(runs of three tokens that stood earlier, all of them)."""
    runs = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(runs) - len(set(runs)), len(runs)


def measure(trained: TrainedModel, prompts: Sequence[list[int]], sampling: Sampling, own: bool):
    """One line of the table."""
    tokenizer = trained.tokenizer
    again = runs = words = distinct = tokens = 0
    for number, prompt in enumerate(prompts):
        stream = (LooksIntoItself if own else Stream)(trained.decoder)
        stream.read(prompt)
        seeded = Sampling(sampling.temperature, sampling.top_p, number, sampling.repetition_penalty)
        sampler = Sampler(seeded, never_written(tokenizer))
        answer = list(write_tokens(stream, sampler, tokenizer.end, ANSWER_TOKENS))
        counts = repeated(answer)
        again, runs, tokens = again + counts[0], runs + counts[1], tokens + len(answer)
        text = tokenizer.decode(answer).split()
        words, distinct = words + len(text), distinct + len(set(text))
    return {
        "repeated": again / max(1, runs),
        "distinct": distinct / max(1, words),
        "tokens_an_answer": tokens / len(prompts),
    }


@click.command()
@click.option("--checkpoint", "checkpoints", metavar="FILE", multiple=True, required=True,
              help="A model (may be repeated).")  # fmt: skip
@click.option("--data", default="sample", show_default=True,
              help="Where the dialogues are: a path, hub or sample.")  # fmt: skip
@click.option("--questions", "count", default=100, show_default=True, help="Of each model.")
@report_options
def command(checkpoints: tuple[str, ...], data: str, count: int) -> Report:
    table: list[Row] = []
    for file in checkpoints:
        trained = TrainedModel.load(file, "cpu")
        prompts = questions(trained, data, count)
        if not prompts:
            raise UserError(f"{data}: no dialogue of {trained.settings.dataset} to ask about")
        slots = trained.settings.recall_slots
        for own in (False, True) if slots else (False,):
            for temperature in TEMPERATURES:
                for penalty in PENALTIES:
                    sampling = Sampling(temperature, repetition_penalty=penalty)
                    row = {
                        "model": trained.path.stem.removeprefix("best_"),
                        "recall_slots": slots,
                        "own_words": "looked up" if own else "not looked up",
                        "temperature": temperature,
                        "penalty": penalty,
                        **measure(trained, prompts, sampling, own),
                    }
                    table.append(row)
                    progress(" ".join(map(str, row.values())))
    return Report({f"{count} questions": table})
