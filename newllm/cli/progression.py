"""Commands of the progression: grow, climb, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from newllm.cli.help_pages import Command, PathParamType
from newllm.cli.options import (
    SeveralWords,
    SeveralWordsOption,
    file_argument,
    output_option,
    setting_options,
)

levels_option = click.option(
    "--levels",
    cls=SeveralWordsOption,
    default=("1", "2", "3", "4", "5"),
    show_default=True,
    help="Numbers or names of levels.",
)
data_dir_option = click.option(
    "--data-dir",
    default="hub",
    metavar="TEXT",
    type=PathParamType(),
    show_default=True,
    help="hub, sample, or a folder with a folder for every level's data set.",
)


@click.command(cls=Command)
@file_argument
@setting_options("num_layers", "context_dim", "embed_dim", "hidden_dim", default="as in FILE")
@setting_options("seed")
@output_option("The file to write.")
def grow(file: str, output: Path, seed: int | None, **sizes: int | None) -> None:
    """Make the model of checkpoint FILE larger, without changing what it says.

    Depth, context and feed-forward grow to any larger size, the stream (--embed-dim) to multiples.

    Example: newllm grow checkpoints/new_llm_dolly_layers1_bpe_final.pt --num-layers 4 -o grown.pt
    """
    from newllm.curriculum.grow import grow_file

    given = {name: size for name, size in sizes.items() if size is not None}
    shape = grow_file(Path(file), output, given, seed or 0)
    click.echo(
        f"{output}: {shape.num_layers} layers, context {shape.context_dim}, stream "
        f"{shape.embed_dim}, feed-forward {shape.hidden_dim}; it says what {file} says.\n"
        f"Train it on: newllm train DATASET --from {output}"
    )


@click.command(cls=SeveralWords)
@levels_option
@data_dir_option
@click.option(
    "--text",
    metavar="PATH",
    type=PathParamType(),
    help="Plain text to read before the levels, as train text --data takes it: a folder of books, "
    "notes or code, a file, hub:ORG/NAME.",
)
@setting_options(
    "minutes", "epochs", "num_layers", "context_dim", "vocab_size", "max_samples", "batch_size",
    "learning_rate", "dropout", "seed", "device", "precision", "out", "save_minutes",
)  # fmt: skip
@click.option(
    "--rehearsal-share",
    type=click.FloatRange(0, 0.9),
    help="Share of the tokens from earlier levels.  [default: each level's]",
)
@click.option(
    "--grow", is_flag=True,
    help="Begin with the first level's size and grow to each level's, instead of one size for all "
    "that fits --minutes.",
)  # fmt: skip
@click.option("--until-cleared", is_flag=True, help="Train a level again until its mark is met.")
@click.option("--keep-going", is_flag=True, help="Go on where a level is not cleared.")
@click.option("--skills", is_flag=True, help="Check answers too, after each level.")
@click.option("--run-code", is_flag=True, help="With --skills: run code answers, shut in.")
@click.option(
    "--prefer", is_flag=True,
    help="After level 2 learn from its pairs which answers people preferred (newllm prefer).",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on where the climb in --out stopped.")
def climb(
    levels: tuple[str, ...],
    data_dir: str,
    text: str | None,
    out: str | None,
    rehearsal_share: float | None,
    grow: bool,
    until_cleared: bool,
    keep_going: bool,
    skills: bool,
    run_code: bool,
    prefer: bool,
    resume: bool,
    **settings: Any,
) -> None:
    """Take one model through all levels, growing and rehearsing, and see what it forgets.

    --minutes and --epochs are those of each level. With --minutes the model has one size
    that suits the time on this machine, and grows only with --grow.

    Example: newllm climb --data-dir sample --minutes 1 --out climb
    """
    from newllm.curriculum.climb import climb as run
    from newllm.curriculum.climb import named_levels
    from newllm.errors import UserError
    from newllm.results.climb import NAME, PLAIN_TEXT, ClimbConfig, read_config

    if run_code and not skills:
        raise UserError("--run-code belongs to the skill check: add --skills")

    folder = Path(out or "checkpoints")
    if text is not None:
        levels = (PLAIN_TEXT, *(level for level in levels if level not in (PLAIN_TEXT, "0")))
    given = {name: value for name, value in settings.items() if value is not None}
    sizes = [name for name in ("num_layers", "context_dim") if name in given]
    if grow and sizes:
        raise UserError("--grow: the levels say how large; omit --num-layers and --context-dim")
    if "minutes" in given and not grow and not sizes:
        if resume and (folder / NAME).exists():
            given = {**read_config(folder)[0].settings, **given}  # the size it began with
        else:
            from newllm.planning.size import fitted_to_climb

            given = fitted_to_climb(named_levels(levels), given, click.echo)
    config = ClimbConfig(
        levels=named_levels(levels),
        data_dir=data_dir,
        text=text,
        out=str(folder),
        settings=given,
        rehearsal_share=rehearsal_share,
        until_cleared=until_cleared,
        keep_going=keep_going,
        skills=skills,
        run_code=run_code,
        prefer=prefer,
    )
    best = run(config, resume)
    click.echo(
        f"See where it stands: newllm progress --out {config.out}\nTalk to it: newllm chat {best}"
    )


@click.group()
def tokenizer() -> None:
    """Vocabularies of their own, for several data sets."""


@tokenizer.command(name="train", cls=SeveralWords)
@levels_option
@data_dir_option
@setting_options("vocab_size")
@output_option("The file to write.")
def train_tokenizer(
    levels: tuple[str, ...], data_dir: str, vocab_size: int | None, output: Path
) -> None:
    """Train one BPE vocabulary on equally many bytes of every level.

    Example: newllm tokenizer train --data-dir sample -o tokenizer.json
    """
    from newllm.curriculum.climb import named_levels, train_tokenizer
    from newllm.results.climb import ClimbConfig
    from newllm.settings import resolve

    given = {} if vocab_size is None else {"vocab_size": vocab_size}
    size = resolve("dolly", given).vocab_size
    config = ClimbConfig(named_levels(levels), data_dir, settings={"vocab_size": size})
    train_tokenizer(config, output, click.echo)
    click.echo(f"Use it: newllm train DATASET --tokenizer-file {output}")


COMMANDS = (grow, climb, tokenizer)
