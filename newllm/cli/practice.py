"""Commands that train on more than texts: prefer."""

from __future__ import annotations

from typing import Any

import click

from newllm.cli.options import SeveralWords, file_argument, setting_options


@click.command(cls=SeveralWords)
@file_argument
@setting_options("data", "columns", "splits", "subset", "max_samples")
@click.option(
    "--method", type=click.Choice(["simpo", "dpo", "orpo"]), default="simpo", show_default=True,
    help="What is minimised (docs/PRACTICE.md).",
)  # fmt: skip
@click.option(
    "--beta", type=float, help="Weight of a difference.  [default: simpo 2, dpo 0.1, orpo 0.5]"
)
@click.option(
    "--gamma", type=float, default=0.5, show_default=True,
    help="SimPO: by how much the chosen answer should be ahead.",
)  # fmt: skip
@click.option(
    "--anchor", type=float, default=1.0, show_default=True,
    help="Weight of the ordinary loss of the chosen dialogues.",
)  # fmt: skip
@setting_options("epochs", default="1")
@setting_options("learning_rate", default="0.0003")
@setting_options("batch_size", default="32 pairs")
@setting_options(
    "minutes", "max_steps", "micro_batch_size", "seed", "device", "threads", "precision", "out",
)  # fmt: skip
@setting_options("name", default="FILE's name and the method")
@setting_options("save_minutes")
@click.option("--resume", is_flag=True, help="Go on where the run of this name stopped.")
def prefer(
    file: str,
    method: Any,
    beta: float | None,
    gamma: float,
    anchor: float,
    resume: bool,
    **settings: Any,
) -> None:
    """Teach checkpoint FILE which of two answers people preferred (HH-RLHF's pairs).

    The verdict compares it with the model before, and with always taking the longer answer.

    Example: newllm prefer checkpoints/best_new_llm_hh_rlhf_layers1_bpe.pt --method simpo
    """
    from newllm.train.prefer import prefer as run
    from newllm.train.preference_loss import Preferring

    flags = {name: value for name, value in settings.items() if value is not None}
    run(file, Preferring(method, beta, gamma, anchor), flags, resume)


COMMANDS = (prefer,)
