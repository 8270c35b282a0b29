"""What generation costs: one token, a prompt, many texts at once, and smaller weights.

    newllm bench inference --vocab-size 1000
    newllm bench inference --checkpoint checkpoints/best_new_llm_dolly_layers1_bpe.pt

One token: the plain module against the fused step, with its weights in fp32, bf16 and int8, and
the whole road with sampling. Prompts: reading them against the forward pass of a training step.
Slots: so many independent texts, each with its own state, each taking one token at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import click
import torch

from benchmarks.measure import Report, Row, report_options, rounds
from benchmarks.models import find_model, model_options
from newllm.data.tokenizers import BPE
from newllm.device import pick_precision
from newllm.inference.decoder import Stream, make_decoder, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel
from newllm.model.context.decode import can_step
from newllm.model.quantize import RoundedLM

SLOTS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = (128, 1024, 4096)
TRAINING_ROWS, TRAINING_LENGTH = 32, 128


@click.command()
@model_options
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(min=1),
              help="Tokens of one timing of the step.")  # fmt: skip
@click.option("--repeats", default=15, show_default=True, type=click.IntRange(min=1),
              help="Rounds, of which the median counts.")  # fmt: skip
@report_options
def command(checkpoint: str | None, tokens: int, repeats: int, **shape: Any) -> Report:
    subject = find_model(checkpoint, **shape)
    tables = {
        "One token at a time": one_token(subject.model, tokens, repeats),
        "Reading a prompt": prompts(subject.model, repeats),
        "Independent texts side by side": slots(subject.model, max(1, tokens // 10), repeats),
    }
    return Report(tables, subject.facts)


def one_token(model: LanguageModel, tokens: int, repeats: int) -> list[Row]:
    """Tokens a second of one text, by how its tokens are read."""
    candidates: dict[str, Callable[[], object]] = {"module": _module_steps(model, 1, tokens)}
    if can_step(model):
        candidates["fused step"] = _fused_steps(model, 1, tokens)
        candidates["fused step, bf16 weights"] = _fused_steps(RoundedLM(model, "bf16"), 1, tokens)
        candidates["fused step, int8 weights"] = _fused_steps(RoundedLM(model, "int8"), 1, tokens)
    candidates["generation, sampling included"] = _generation(model, tokens)
    return [
        {
            "candidate": timing.name,
            "microseconds": 1e6 * timing.seconds / tokens,
            "tokens_per_second": timing.per_second,
            "spread": timing.spread,
            "ratio_to_module": timing.ratio,
        }
        for timing in rounds(candidates, repeats, "module", tokens)
    ]


def prompts(model: LanguageModel, repeats: int) -> list[Row]:
    """Tokens a second of reading, against the forward pass of a training step."""
    candidates: dict[str, Callable[[], object]] = {}
    work: dict[str, float] = {}
    precisions = dict.fromkeys(("fp32", pick_precision("auto", torch.device("cpu"))))
    for precision in precisions:
        name = f"training forward, {TRAINING_ROWS} x {TRAINING_LENGTH}, {precision}"
        candidates[name] = _training_forward(model, precision)
        work[name] = TRAINING_ROWS * TRAINING_LENGTH
    for length in PROMPTS:
        name = f"prompt of {length:,}, fp32"
        candidates[name] = _prompt(model, length)
        work[name] = length
    return [
        {
            "candidate": timing.name,
            "milliseconds": 1e3 * timing.seconds,
            "tokens_per_second": timing.per_second,
            "spread": timing.spread,
            "ratio_to_training": timing.ratio,
        }
        for timing in rounds(candidates, repeats, work=work)
    ]


def slots(model: LanguageModel, tokens: int, repeats: int) -> list[Row]:
    """Tokens a second of all slots together, and times what one slot makes with the same code."""
    rows: list[Row] = []
    ways: dict[str, Callable[[int], Callable[[], object]]] = {
        "module": lambda count: _module_steps(model, count, tokens)
    }
    if can_step(model):
        ways["fused step"] = lambda count: _fused_steps(model, count, tokens)
    for way, make in ways.items():
        candidates = {f"{count}": make(count) for count in SLOTS}
        work = {f"{count}": count * tokens for count in SLOTS}
        rows += [
            {
                "candidate": way,
                "slots": int(timing.name),
                "tokens_per_second": timing.per_second,
                "spread": timing.spread,
                "ratio_to_one_slot": timing.ratio,
            }
            for timing in rounds(candidates, repeats, work=work)
        ]
    return rows


# -- what is timed -------------------------------------------------------------------------------


def _random_ids(model: LanguageModel, *shape: int) -> torch.Tensor:
    return torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def _module_steps(model: LanguageModel, count: int, tokens: int) -> Callable[[], object]:
    """Read so many tokens one after the other, in `count` slots, with the module."""
    ids, state = _random_ids(model, tokens, count, 1), model.initial_state(count)

    @torch.inference_mode()
    def run() -> None:
        nonlocal state
        for column in ids:
            hidden, state = model(column, state)
            model.logits(hidden)

    return run


def _fused_steps(model: LanguageModel, count: int, tokens: int) -> Callable[[], object]:
    """The same with the fused step."""
    rows = _random_ids(model, tokens, count).tolist()
    decoder = make_decoder(model)
    slots = [decoder.add() for _ in range(count)]

    def run() -> None:
        for row in rows:
            decoder.step(slots, row)

    return run


def _generation(model: LanguageModel, tokens: int) -> Callable[[], object]:
    """Write so many tokens, sampled."""
    stream, sampler = Stream(make_decoder(model)), Sampler(Sampling(seed=0), ())
    stream.read([BPE.bos])

    def run() -> None:
        for _ in write_tokens(stream, sampler, BPE.end, tokens, tokens):
            pass

    return run


def _prompt(model: LanguageModel, length: int) -> Callable[[], object]:
    """Read a prompt from the start of a text."""
    ids = _random_ids(model, length).tolist()
    decoder = make_decoder(model)
    return lambda: Stream(decoder).read(ids)


def _training_forward(model: LanguageModel, precision: str) -> Callable[[], object]:
    """The trunk in training mode, keeping what a backward pass needs."""
    model = copy.deepcopy(model).train().requires_grad_(True)
    ids = _random_ids(model, TRAINING_ROWS, TRAINING_LENGTH)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(ids)

    return run
