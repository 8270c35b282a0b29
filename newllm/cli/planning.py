"""The verb that looks ahead: `plan`."""

from __future__ import annotations

import json

import click

from newllm.cli.help_pages import Command
from newllm.cli.options import Count, json_option, params_option


@click.command(cls=Command)
@params_option("Parameters of the model, at most.", required=True)
@click.option("--tokens", type=Count(), required=True, help="Tokens to train on, in all.")
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
    help="Tokens of a step.  [default: 4,096 here, 32,768 a device elsewhere]",
)  # fmt: skip
@click.option(
    "--utilisation", type=click.FloatRange(0, 1, min_open=True),
    help="Share of a device's peaks that is assumed to be reached.  [default: 0.4]",
)  # fmt: skip
@click.option(
    "--price", type=click.FloatRange(min=0),
    help="Dollars an hour and device.  [default: what renting the device costs about]",
)  # fmt: skip
@json_option
def plan(
    params: int,
    tokens: int,
    device: str,
    num_layers: int | None,
    vocab_size: int,
    batch_tokens: int | None,
    utilisation: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Say beforehand how long a training takes, whether it fits into memory, and what it costs.

    Example: newllm plan --params 350M --tokens 10B --device l4x8
    """
    from newllm.planning.plan import machine_of, make_plan, plan_table
    from newllm.settings import resolve

    chosen = {"vocab_size": vocab_size}
    chosen |= {} if num_layers is None else {"num_layers": num_layers}
    settings = resolve("ultrachat", chosen, params=params)
    found = make_plan(settings, tokens, machine_of(device, utilisation, price), batch_tokens)
    click.echo(json.dumps(found.facts()) if as_json else plan_table(found))


COMMANDS = (plan,)
