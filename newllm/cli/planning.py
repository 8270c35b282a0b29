"""The verb that looks ahead: `plan`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from newllm.cli.help_pages import Command
from newllm.cli.options import Count, json_option, params_option
from newllm.datasets import DATASETS
from newllm.errors import UserError


@click.command(cls=Command)
@click.argument("dataset", type=click.Choice(list(DATASETS)), metavar="[DATASET]", required=False)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True),
    help="Of training on this machine: which size learns most of DATASET.",
)  # fmt: skip
@params_option("Parameters of the model, at most.")
@click.option("--tokens", type=Count(), help="Tokens to train on, in all.")
@click.option(
    "--device",
    default="here",
    show_default=True,
    metavar="NAME[xN]",
    help="Where: here (measured now), or N of t4, l4, rtx4090, a100, a100-80gb, h100 or h200.",
)
@click.option(
    "--num-layers", type=click.IntRange(1, 128), help="Number of blocks.  [default: by the size]"
)
@click.option(
    "--vocab-size", type=click.IntRange(300, 65536), default=4096, show_default=True,
    help="Entries of the BPE vocabulary.",
)  # fmt: skip
@click.option(
    "--batch-tokens", type=Count(),
    help="Tokens of a step.  [default: as in training, 4,096 over all devices]",
)  # fmt: skip
@click.option(
    "--utilisation", type=click.FloatRange(0, 1, min_open=True),
    help="Share of a device's peaks that is assumed to be reached.  [default: 0.4]",
)  # fmt: skip
@click.option(
    "--price", type=click.FloatRange(min=0),
    help="Dollars an hour and device.  [default: what renting the device costs about]",
)  # fmt: skip
@click.option(
    "--shard", is_flag=True,
    help="The devices share one model, as those of `newllm train --shard` do.",
)  # fmt: skip
@json_option
def plan(
    dataset: str | None,
    minutes: float | None,
    params: int | None,
    tokens: int | None,
    device: str,
    num_layers: int | None,
    vocab_size: int,
    batch_tokens: int | None,
    utilisation: float | None,
    price: float | None,
    shard: bool,
    as_json: bool,
) -> None:
    """Say beforehand how long a training takes, whether it fits into memory, and what it costs.

    With DATASET and --minutes, say which size to train here in that time, and what to expect.

    Example: newllm plan --params 350M --tokens 10B --device l4x8
    """
    if dataset is not None:
        others = params, tokens, num_layers, batch_tokens, utilisation, price
        if minutes is None or device != "here" or shard or any(o is not None for o in others):
            raise UserError(
                "plan DATASET: give --minutes and nothing else: it is about this machine, and the "
                "size is what it says"
            )
        _plan_size(dataset, minutes, as_json)
        return
    if not params or not tokens:
        raise UserError("plan: give --params and --tokens, or a DATASET and --minutes")
    from newllm.planning.plan import machine_of, make_plan, plan_table
    from newllm.settings import resolve

    chosen = {"vocab_size": vocab_size}
    chosen |= {} if num_layers is None else {"num_layers": num_layers}
    settings = resolve("ultrachat", chosen, params=params)
    machine = machine_of(device, settings, utilisation, price)
    found = make_plan(settings, tokens, machine, batch_tokens, shard)
    click.echo(json.dumps(found.facts()) if as_json else plan_table(found))


def _plan_size(dataset: str, minutes: float, as_json: bool) -> None:
    from newllm.planning.size import (
        STEP_TOKENS,
        choose_size,
        describe,
        expected_bpb,
        measured_steps,
    )
    from newllm.settings import resolve

    steps = measured_steps(dataset, {})
    choice, counts = choose_size(dataset, minutes, steps), resolve(dataset, {}).counts
    if as_json:
        click.echo(json.dumps({**asdict(choice), "counts": counts}))
        return
    click.echo(describe(choice, counts, dataset))
    for size in (choice.parameters // 3, choice.parameters, 3 * choice.parameters):
        tokens = round(60 * minutes / steps(size) * STEP_TOKENS)
        expected = expected_bpb(dataset, size, tokens)
        reaches = "" if expected is None else f", {expected:.3f} bits per byte expected"
        click.echo(f"       {size:>11,} parameters: {tokens:>12,} tokens{reaches}")
    click.echo(f"Train  newllm train {dataset} --params auto --minutes {minutes:g}")


COMMANDS = (plan,)
