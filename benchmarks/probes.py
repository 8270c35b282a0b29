"""What the fixed-size context remembers: pairs, parity, and earlier turns of a dialogue.

    newllm bench probes --plot probes.png
    newllm bench probes --only turns --checkpoint FILE --checkpoint FILE --data FOLDER

Recall (MQAR, arXiv:2312.04927): so many pairs of a key and a value, then questions for the values
of keys, each answered in the text before the next. Small models are trained on it for a fixed
number of steps, on 2 pairs first and on twice as many whenever those are learned, and tested on 128
tokens. "guess" is what remembering the values without their keys reaches. Parity: trained on 8
bits, then 16, 32 and 64 when the former are learned, tested up to 1,024. Turns (of each
--checkpoint): the loss of turn k of a dialogue with the earlier turns in the state, and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import probe_tasks as probes
from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.probe_plot import save_plot
from benchmarks.probe_training import Lesson, train_on
from newllm.config import ARCHITECTURES
from newllm.data.loader import IGNORED
from newllm.data.located import Located
from newllm.data.render import ChatRenderer
from newllm.data.sources import open_source
from newllm.datasets import DATASETS, find_dataset
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError, require_packages
from newllm.model import LanguageModel
from newllm.model.spec import RECALL_SLOTS, find_spec
from newllm.trained import TrainedModel

PROBES = ("recall", "parity", "turns")
DISTANCES = (8, 16, 32, 64, 128)
DISTANCE_PAIRS = 4
PARITY_LESSONS = (8, 16, 32, 64)
RECALL_RATE, PARITY_RATE = 0.01, 0.003
"""Learning rates, the same for all; of a few tried, those that most architectures learned with."""
TEST_SEED = 2**31
"""Never a training step's."""

RECALL, RECALL_DISTANCE = (
    "Recall by number of pairs",
    f"Recall of {DISTANCE_PAIRS} pairs by distance",
)
PARITY, TURNS = "Parity by length", "Turns of dialogues"


@dataclass(frozen=True)
class Budget:
    """How much is trained and tested."""

    recall_steps: int = 2000
    recall_tokens: int = 512
    """In one step."""
    recall_length: int = 128
    pairs: tuple[int, ...] = (2, 4, 8, 16, 32)
    context_dims: tuple[int, ...] = (64, 128, 256)
    """Of our architecture; the baselines have the middle one."""
    parity_steps: int = 400
    parity_tokens: int = 1536
    parity_lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    test_rows: int = 256


QUICK = Budget(5, 64, 16, (2, 4), (16, 48, 80), 3, 64, (32, 64), 8)


@click.command()
@click.option("--architecture", "architectures", multiple=True, type=click.Choice(ARCHITECTURES),
              help="Only this one (may be repeated).")  # fmt: skip
@click.option("--steps", default=1.0, show_default=True,
              type=click.FloatRange(min=0, min_open=True),
              help="Train so many times as many steps.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0),
              help="Seed of the weights.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Hardly train at all, only to see that it runs.")
@click.option("--only", multiple=True, type=click.Choice(PROBES),
              help="Only this probe (may be repeated).")  # fmt: skip
@click.option("--checkpoint", "checkpoints", metavar="FILE", multiple=True,
              help="Also probe this model's dialogues (may be repeated).")  # fmt: skip
@click.option("--dataset", type=click.Choice(list(DATASETS)),
              help="Kind of the dialogues.  [default: what the model was trained on]")  # fmt: skip
@click.option("--data", default="sample", show_default=True,
              help="Where the dialogues are: a path, hub or sample.")  # fmt: skip
@click.option("--dialogues", default=200, show_default=True, type=click.IntRange(min=1),
              help="Validation dialogues that are read at most.")  # fmt: skip
@click.option("--plot", metavar="FILE.png", help="Draw the tables.")
@report_options
def command(
    architectures: tuple[str, ...],
    steps: float,
    seed: int,
    quick: bool,
    only: tuple[str, ...],
    checkpoints: tuple[str, ...],
    dataset: str | None,
    data: str,
    dialogues: int,
    plot: str | None,
) -> Report:
    if plot is not None:
        require_packages("--plot", "matplotlib", extra="report")
    wanted = only or PROBES
    if "turns" in only and not checkpoints:
        raise UserError("--only turns: needs a model; give its file with --checkpoint")
    if checkpoints and "turns" not in wanted:
        raise UserError("--checkpoint: only turns are probed with it; add --only turns or omit it")
    tables: dict[str, list[Row]] = {}
    if checkpoints:
        tables[TURNS] = [
            {"model": name, **row}
            for name, file in zip(_names(checkpoints), checkpoints, strict=True)
            for row in later_turns(file, dataset, data, dialogues)
        ]
    budget, chosen = QUICK if quick else Budget(), architectures or ARCHITECTURES
    if "recall" in wanted:
        tables |= recall(budget, chosen, steps, seed)
    if "parity" in wanted:
        tables[PARITY] = parity(budget, chosen, steps, seed)
    trained = {"training": f"{steps:g} x the default steps", "seed": seed}
    report = Report(tables, {} if set(wanted) == {"turns"} else trained)
    if plot is not None:
        save_plot(report.tables, plot)
    return report


def recall(
    budget: Budget, architectures: Sequence[str], steps: float, seed: int
) -> dict[str, list[Row]]:
    """Accuracy by number of pairs and by distance, for each architecture and context size."""
    tests = {
        pairs: probes.recall_task(TEST_SEED, budget.test_rows, pairs, budget.recall_length)
        for pairs in budget.pairs
    }
    guess = {f"pairs_{pairs}": probes.recall_guess(test) for pairs, test in tests.items()}
    by_pairs = [{**_description("guess", None, None), "recall_slots": None, **guess}]
    by_distance = []
    for architecture in architectures:
        baseline = architecture != "context"
        sizes = budget.context_dims[1:2] if baseline else budget.context_dims
        shapes = [(size, 0) for size in sizes]
        if find_spec(architecture).has_recall:
            shapes.append((budget.context_dims[1], RECALL_SLOTS))
        for context_dim, slots in shapes:
            model = train_on(
                [_recall_lesson(budget, pairs) for pairs in budget.pairs],
                probes.RECALL_VOCABULARY,
                architecture,
                context_dim,
                RECALL_RATE,
                round(steps * budget.recall_steps),
                seed,
                slots,
            )
            right = {pairs: probes.answers(model, test) for pairs, test in tests.items()}
            accuracy = {
                f"pairs_{pairs}": float(right[pairs][test.targets != IGNORED].mean())
                for pairs, test in tests.items()
            }
            description = {**_description(architecture, context_dim, model), "recall_slots": slots}
            by_pairs.append({**description, **accuracy})
            distances = probes.recall_distances(tests[DISTANCE_PAIRS])
            by_distance.append({**description, **_by_distance(right[DISTANCE_PAIRS], distances)})
            progress(f"recall, {architecture} {context_dim} {slots}: {_line(accuracy)}")
    return {RECALL: by_pairs, RECALL_DISTANCE: by_distance}


def _recall_lesson(budget: Budget, pairs: int) -> Lesson:
    """Batches of so many pairs: mostly short rows, which are many, some of the tested length."""

    def draw(seed: int) -> probes.Task:
        length = budget.recall_length if seed % 3 == 0 else 4 * pairs
        return probes.recall_task(seed, max(1, budget.recall_tokens // length), pairs, length)

    return draw


def _by_distance(right: np.ndarray, distances: np.ndarray) -> dict[str, float | None]:
    """Accuracy of the questions asked at most so far from their pair, and farther than before."""
    row: dict[str, float | None] = {}
    for low, high in zip((0, *DISTANCES[:-1]), DISTANCES, strict=True):
        at = (distances > low) & (distances <= high)
        row[f"distance_{high}"] = float(right[at].mean()) if at.any() else None
    return row


def parity(budget: Budget, architectures: Sequence[str], steps: float, seed: int) -> list[Row]:
    """Accuracy on the second half of the first n bits, for each n."""
    test = probes.parity_task(TEST_SEED, budget.test_rows, budget.parity_lengths[-1])
    rows = []
    for architecture in architectures:
        model = train_on(
            [_parity_lesson(budget, length) for length in PARITY_LESSONS],
            probes.PARITY_VOCABULARY,
            architecture,
            budget.context_dims[0],
            PARITY_RATE,
            round(steps * budget.parity_steps),
            seed,
        )
        right = probes.answers(model, test)
        accuracy = {
            f"length_{length}": float(right[:, length // 2 : length].mean())
            for length in budget.parity_lengths
        }
        rows.append({**_description(architecture, budget.context_dims[0], model), **accuracy})
        progress(f"parity, {architecture}: {_line(accuracy)}")
    return rows


def _parity_lesson(budget: Budget, length: int) -> Lesson:
    return lambda seed: probes.parity_task(seed, budget.parity_tokens // length, length)


def _names(checkpoints: Sequence[str]) -> list[str]:
    """What the tables call these files: by name, with the folder where names are the same."""
    paths = [Path(checkpoint).absolute() for checkpoint in checkpoints]
    names = [path.stem.removeprefix("best_") for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def later_turns(checkpoint: str, dataset: str | None, data: str, count: int) -> list[Row]:
    """Loss of each turn of validation dialogues with and without the turns before it."""
    trained = TrainedModel.load(checkpoint, "cpu")
    dataset = dataset or trained.settings.dataset
    renderer = trained.renderer
    if not isinstance(renderer, ChatRenderer):
        raise UserError(f"{checkpoint}: the word-1000 protocol knows no turns; give a BPE model")
    conversations: list[Conversation] = []
    for item in open_source(find_dataset(dataset), data).evaluation_split()():
        if len(conversations) == count:
            break
        if isinstance(item, Located):
            try:
                conversations.append(find_dataset(dataset).conversation(item.row))
            except ValueError:  # `newllm data` counts and shows them
                continue
    turns = probes.turn_losses(trained.model, renderer, conversations)
    if not any(turn > 1 for turn, _ in turns):
        raise UserError(
            f"{checkpoint}: no dialogue of {dataset} in {data} has a second turn; choose other "
            "rows with --dataset and --data"
        )
    return [
        {
            "dataset": dataset,
            "context_dim": trained.settings.context_dim,
            "turn": turn,
            "speaker": speaker,
            "dialogues": sums.dialogues,
            "tokens": sums.tokens,
            "nats_per_token": sums.nats_carried / sums.tokens,
            "nats_per_token_reset": sums.nats_reset / sums.tokens,
            "nats_per_byte": sums.nats_carried / sums.content_bytes,
            "nats_per_byte_reset": sums.nats_reset / sums.content_bytes,
            "saved_share": 1 - sums.nats_carried / sums.nats_reset,
        }
        for (turn, speaker), sums in turns.items()
    ]


def _description(name: str, context_dim: int | None, model: LanguageModel | None) -> dict[str, Any]:
    """What was trained, with the numbers it carries from token to token."""
    parts = [] if model is None else model.initial_state(1).values()
    return {
        "architecture": name,
        "context_dim": context_dim,
        "parameters": model and sum(parameter.numel() for parameter in model.parameters()),
        "state_numbers": model and sum(part.numel() for part in parts),
    }


def _line(accuracy: dict[str, float]) -> str:
    return " ".join(f"{share:.2f}" for share in accuracy.values())
