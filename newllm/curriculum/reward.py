"""`newllm prefer --method reward`: a linear head that says which of two answers people preferred.

The model stays as it is. Each dialogue of a pair is read once; of the states at the ends of the
answers, h, a weight w is learnt by Bradley and Terry's model of pairs, p(chosen over rejected) =
sigmoid(w h_chosen - w h_rejected), with a penalty on |w|^2 that is chosen by a tenth of the
training pairs. What it is worth is measured on pairs that neither saw.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.render import ChatRenderer
from newllm.data.sources import open_source
from newllm.data.tokenizers import BPE
from newllm.datasets.hh_rlhf import DATASET
from newllm.errors import UserError
from newllm.evaluate.preferences import Side, bootstrap_interval, pair_scores
from newllm.inference.reward import end_states, reward_file
from newllm.train import checkpoint
from newllm.train.distributed import refuse_several
from newllm.train.prefer import Pairs, compared, read_pairs
from newllm.trained import TrainedModel

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of |w|^2 / 2, with the states' differences scaled to a variance of 1."""


def train_reward(file: str, flags: Mapping[str, Any]) -> Path:
    """Learn the reward head of a checkpoint, print what it is worth, and write it beside the file.

    Args:
        file: the checkpoint, which is not changed.
        flags: of `data`, `columns`, `splits`, `subset`, `max_samples`, `seed`, `device`,
            `threads`, those that the user gave.

    Returns:
        Path of the head.

    Raises:
        UserError: anything the user can mend.
    """
    refuse_several("prefer --method reward")
    started = time.perf_counter()
    if flags.get("threads"):
        torch.set_num_threads(flags["threads"])
    model = TrainedModel.load(file, flags.get("device", "auto"))
    if not isinstance(model.tokenizer, BPE):
        raise UserError(f"{file}: word1000 loses most words of an answer; train with BPE first")
    source = open_source(
        DATASET,
        flags.get("data", "hub"),
        flags.get("subset", "all"),
        columns=flags.get("columns", ()),
        splits=flags.get("splits", ()),
        most=flags.get("max_samples"),
    )
    renderer = ChatRenderer(model.tokenizer)
    training, validation = (read_pairs(rows, renderer) for rows in source.training_splits())
    for name, pairs in (("training", training), ("validation", validation)):
        if not pairs.sides:
            raise UserError(f"{source.description}: no {name} row has two answers")
        print(pairs.line(name))
    most = flags.get("max_samples") or len(training.sides)
    weight, penalty = fit_head(_differences(model, training.sides[:most]), flags.get("seed", 0))
    verdict = judge_head(model, weight, validation)
    path = reward_file(Path(file))
    content = {
        "kind": "reward",
        "weight": weight,
        "model": checkpoint.digest(Path(file)),
        "penalty": penalty,
        "training_pairs": min(most, len(training.sides)),
        "data": source.description,
        **verdict,
    }
    checkpoint.save(path, content)
    for line in head_lines(verdict):
        print(line)
    seconds = time.perf_counter() - started
    print(f"{path}, in {seconds:.0f} seconds\nUse it: newllm chat {file} --best-of 4")
    return path


def _differences(model: TrainedModel, sides: Sequence[tuple[Side, Side]]) -> Tensor:
    """Chosen less rejected states of P pairs, float64 [P, D]."""
    texts = [side.ids for pair in sides for side in pair]
    states = end_states(model.as_trained, texts).double().view(len(sides), 2, -1)
    return states[:, 0] - states[:, 1]


def fit_head(differences: Tensor, seed: int) -> tuple[Tensor, float]:
    """The weight of a head, fp32 [D], and its penalty.

    Args:
        differences: chosen less rejected states, float64 [P, D].
        seed: decides which tenth of the pairs chooses the penalty.
    """
    scale = differences.square().mean(dim=0).sqrt().clamp(min=1e-12)
    scaled = differences / scale
    order = np.random.default_rng(seed).permutation(len(scaled))
    aside = max(1, len(order) // 10)
    chooses, fits = scaled[order[:aside]], scaled[order[aside:]]
    losses = {
        penalty: float(F.softplus(-(chooses @ bradley_terry(fits, penalty))).mean())
        for penalty in PENALTIES
    } if len(fits) else {PENALTIES[-1]: 0.0}  # fmt: skip
    best = min(losses, key=lambda penalty: losses[penalty])
    return (bradley_terry(scaled, best) / scale).float(), best


def bradley_terry(differences: Tensor, penalty: float) -> Tensor:
    """The w that minimises mean ln(1 + exp(-x w)) + penalty |w|^2 / 2 over P rows x: float64 [D].

    By Newton's method, which a convex function of some hundred numbers allows.
    """
    weight = differences.new_zeros(differences.shape[1])
    identity = torch.eye(len(weight), dtype=weight.dtype)
    for _ in range(30):
        wrong = torch.sigmoid(-(differences @ weight))
        gradient = penalty * weight - (wrong[:, None] * differences).mean(dim=0)
        curvature = (wrong * (1 - wrong))[:, None] * differences
        hessian = differences.T @ curvature / len(differences) + penalty * identity
        step = torch.linalg.solve(hessian, gradient)
        weight = weight - step
        if float(step.abs().max()) < 1e-9:
            break
    return weight


def judge_head(model: TrainedModel, weight: Tensor, validation: Pairs) -> dict[str, Any]:
    """What a head is worth on P pairs that it never saw.

    Returns:
        pairs; right, longer, likelier (shares of pairs: the head prefers the chosen answer, the
        longer answer is the chosen one, the model finds the chosen one likelier per byte);
        right_interval, over_longer_interval, over_likelier_interval (95%, bootstrap over pairs).
    """
    right = (_differences(model, validation.sides) @ weight.double() > 0).numpy()
    scores = pair_scores(model.as_trained, validation.sides)
    longer, likelier = scores.longer_chosen, scores.prefers_chosen
    return {
        "pairs": len(right),
        "right": float(right.mean()),
        "right_interval": bootstrap_interval(right),
        "longer": float(longer.mean()),
        "over_longer_interval": bootstrap_interval(right.astype(int) - longer),
        "likelier": float(likelier.mean()),
        "over_likelier_interval": bootstrap_interval(right.astype(int) - likelier),
    }


def head_lines(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict in words."""
    low, high = verdict["right_interval"]
    share = f"{verdict['right']:.1%} of {verdict['pairs']} validation pairs"
    return [
        f"Reward head: right about {share} (95%: {low:.1%} to {high:.1%})",
        *(
            compared(what, verdict["right"], verdict[name], verdict[f"over_{name}_interval"])
            for name, what in (
                ("longer", "always the longer answer"),
                ("likelier", "what the model finds likelier"),
            )
        ),
    ]
