"""Commands that train on more than texts: prefer, practise."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from newllm.cli.help_pages import Command
from newllm.cli.options import SeveralWords, file_argument, setting_options
from newllm.config import option_name
from newllm.errors import UserError
from newllm.results.stages import Practice

_USUAL = Practice("")

_OF_A_HEAD = {
    "file", "method", "data", "columns", "splits", "subset", "max_samples", "seed", "device",
    "threads",
}  # fmt: skip
"""What `--method reward` asks for."""


@click.command(cls=SeveralWords)
@file_argument
@setting_options("data", "columns", "splits", "subset", "max_samples")
@click.option(
    "--method", type=click.Choice(["simpo", "dpo", "orpo", "reward"]), default="simpo",
    show_default=True,
    help="What is minimised; reward: the model stays, a head beside it learns to judge answers.",
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
@setting_options("learning_rate", default="0.00003")
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
    if method == "reward":
        given = click.get_current_context().get_parameter_source
        for name in click.get_current_context().params.keys() - _OF_A_HEAD:
            if given(name) is ParameterSource.COMMANDLINE:
                raise UserError(f"{option_name(name)}: a reward head has none; omit it")
        from newllm.curriculum.reward import train_reward

        train_reward(file, flags)
        return
    run(file, Preferring(method, beta, gamma, anchor), flags, resume)


@click.command(cls=Command)
@file_argument
@click.option(
    "--task", type=click.Choice(["arithmetic", "code", "math"]), default=_USUAL.task,
    show_default=True, help="What is asked; code runs shut in, math needs the extra eval.",
)  # fmt: skip
@click.option("--grade", type=click.IntRange(1, 4), default=_USUAL.grade, show_default=True,
              help="How difficult: 1 sums of two digits, 2 differences too, 3 of three digits, "
              "4 products; of code: steps.")  # fmt: skip
@setting_options("data", default="hub; of math alone")
@click.option("--shown", type=click.IntRange(0), default=_USUAL.shown, show_default=True,
              help="Solved problems that are shown first.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=_USUAL.rounds, show_default=True,
              help="Rounds of practice at most.")  # fmt: skip
@click.option("--problems", type=click.IntRange(1), default=_USUAL.problems, show_default=True,
              help="New problems a round.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1), default=_USUAL.samples, show_default=True,
              help="Answers to each.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0), default=_USUAL.temperature,
              show_default=True, help="How freely answers are drawn.")  # fmt: skip
@click.option("--goal", type=click.FloatRange(0, 1), default=_USUAL.goal, show_default=True,
              help="Share of right answers at which practice ends.")  # fmt: skip
@click.option(
    "--replay",
    metavar="DATASET=PATH",
    help="Rows mixed in against forgetting.  [default: those FILE was trained on]",
)
@click.option("--replay-share", type=click.FloatRange(0, 0.9), default=_USUAL.replay_share,
              show_default=True, help="Share of the tokens that is replay.")  # fmt: skip
@setting_options("learning_rate", default=f"{_USUAL.learning_rate:g}")
@setting_options("batch_size", default=str(_USUAL.batch_size))
@setting_options("seed", "device", "out")
@click.option("--name", default=_USUAL.name, show_default=True, help="Name of the practice.")
@click.option("--resume", is_flag=True, help="Go on where the practice of this name stopped.")
def practise(file: str, resume: bool, **given: Any) -> None:
    """Let checkpoint FILE answer problems, and learn from what a checker finds right.

    Example: newllm practise best.pt --task arithmetic --grade 1
    """
    from newllm.curriculum.practise import practise as run

    run(Practice(file, **{n: value for n, value in given.items() if value is not None}), resume)


COMMANDS = (prefer, practise)
