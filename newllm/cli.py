"""The command line: `newllm VERB ...`. Options of `train` are generated from the settings.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

import newllm
from newllm import __version__
from newllm.config import Settings, option_name, read_yaml
from newllm.errors import Stopped, UserError
from newllm.levels import LEVELS

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat

_FULL_OR_READONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def _same_dash(name: str) -> str:
    """`--num_layers` and `--num-layers` are one option, `hh-rlhf` and `hh_rlhf` one name."""
    return name.replace("_", "-")


CONTEXT = {"token_normalize_func": _same_dash, "help_option_names": ["-h", "--help"]}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="newllm")
def cli() -> None:
    """Small language models without attention: train them level by level, and talk to them."""


def setting_options(*fields: str) -> Callable[[Any], Any]:
    """Add an option for each of these settings (default: all), from its definition."""

    def decorate(command: Any) -> Any:
        for field in reversed(
            fields or [name for name in Settings.model_fields if name != "dataset"]
        ):
            command = _setting_option(field)(command)
        return command

    return decorate


def _setting_option(field: str) -> Callable[[Any], Any]:
    info = Settings.model_fields[field]
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
    kind: Any = (
        kinds[0] if kinds and get_origin(info.annotation) is not Literal else info.annotation
    )
    default = "" if info.is_required() or info.default is None else f"  [default: {info.default}]"
    if info.is_required() or field == "pair_rows":  # 0 where no level decides
        default = "  [default: the level's]"
    options: dict[str, Any] = {"help": f"{info.description}.{default}", "default": None}
    if kind is bool:
        options["is_flag"] = True
    elif get_origin(kind) is Literal:
        options["type"] = click.Choice(get_args(kind))
    else:
        options["type"] = kind
    return click.option(option_name(field), field, **options)


dataset_argument = click.argument("dataset", type=click.Choice(list(LEVELS)), metavar="DATASET")
file_argument = click.argument("file", metavar="FILE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
weights_option = click.option(
    "--weights",
    type=click.Choice(["fp32", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Round the matrices to a smaller format, which is faster to read (CPU only).",
)


@cli.command()
@dataset_argument
@setting_options()
@click.option("--resume", is_flag=True, help="Go on where the run of this name stopped.")
@click.option("--config", metavar="FILE.yaml", help="Settings file; flags take precedence.")
def train(dataset: str, resume: bool, config: str | None, **settings: Any) -> None:
    """Train a model on DATASET: a level, wikitext2, or chat for your own rows.

    Example: newllm train dolly --tokenizer word1000 --epochs 4
    """
    flags = {name: value for name, value in settings.items() if value is not None}
    file = read_yaml(config) if config else None
    if file and file.get("dataset", dataset) != dataset:
        raise UserError(f"{config}: settings of {file['dataset']}, not of {dataset}")
    from newllm.train.run import train as run

    run(dataset, flags, file, resume)


@cli.command(name="eval")
@file_argument
@setting_options("data", "subset", "device")
@click.option("--dataset", default=None, help="Read the rows as this data set's.")
@click.option("--batch-size", default=None, type=click.IntRange(min=1), help="Rows scored at once.")
@weights_option
@json_option
def evaluate(
    file: str,
    data: str | None,
    subset: str | None,
    device: str | None,
    dataset: str | None,
    batch_size: int | None,
    weights: WeightFormat,
    as_json: bool,
) -> None:
    """Score the checkpoint FILE on validation rows.

    Example: newllm eval checkpoints/best_new_llm_dolly_layers1_bpe.pt --data sample --json
    """
    from newllm.report.tables import evaluation_table
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights)
    size = {} if batch_size is None else {"lanes": batch_size}
    result = model.evaluate(data or model.settings.data, dataset, subset, **size)
    click.echo(json.dumps(result) if as_json else evaluation_table(result))


def sampling_options(command: Any) -> Any:
    """Options of everything that writes text."""
    for option in reversed(
        [
            click.option("--max-new-tokens", default=256, show_default=True,
                         type=click.IntRange(min=1), help="Tokens written at most."),
            click.option("--min-new-tokens", default=0, type=click.IntRange(min=0),
                         help="Tokens before the answer may end."),
            click.option("--temperature", default=0.7, show_default=True,
                         type=click.FloatRange(min=0), help="0: always the likeliest token."),
            click.option("--top-p", default=0.9, show_default=True,
                         type=click.FloatRange(min=0, max=1, min_open=True),
                         help="Sample from the likeliest tokens of this total probability."),
            click.option("--seed", default=None, type=click.IntRange(min=0),
                         help="Same seed, same text."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@cli.command()
@file_argument
@click.option("--prompt", required=True, help="What is said to the model.")
@sampling_options
@setting_options("device")
@weights_option
def generate(
    file: str,
    prompt: str,
    max_new_tokens: int,
    min_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    device: str | None,
    weights: WeightFormat,
) -> None:
    """Print the answer of checkpoint FILE to a prompt.

    Example: newllm generate best.pt --prompt "What is the capital of France?"
    """
    from newllm.chat.sampling import Sampling
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights)
    sampling = Sampling(temperature, top_p, seed)
    for piece in model.generate(prompt, sampling, max_new_tokens, min_new_tokens):
        click.echo(piece, nl=False)
    click.echo()


@cli.command()
@file_argument
@click.option("--system", default=None, help="What the model is told before the conversation.")
@sampling_options
@setting_options("device")
@weights_option
def chat(
    file: str,
    system: str | None,
    max_new_tokens: int,
    min_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    device: str | None,
    weights: WeightFormat,
) -> None:
    """Talk to checkpoint FILE; the conversation is held in its fixed-size state."""
    from newllm.chat.sampling import Sampling
    from newllm.chat.terminal import converse
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights)
    session = model.chat(Sampling(temperature, top_p, seed), system)
    converse(session, f"{file}: {model.parameters:,} parameters", max_new_tokens, min_new_tokens)


@cli.command()
@file_argument
@json_option
def info(file: str, as_json: bool) -> None:
    """Say what checkpoint FILE is: settings, data, metrics, versions."""
    from newllm.report.tables import checkpoint_facts, facts_table

    facts = checkpoint_facts(file)
    click.echo(json.dumps(facts) if as_json else facts_table(facts))


@cli.command()
@dataset_argument
@setting_options(
    "data", "subset", "tokenizer", "vocab_size", "max_samples", "max_seq_length", "seed"
)
@json_option
def data(dataset: str, as_json: bool, **settings: Any) -> None:
    """Show what DATASET's rows become: counts, malformed rows, a rendered example.

    Example: newllm data dolly --data my_folder --tokenizer word1000
    """
    from newllm.report.tables import data_facts, data_table

    facts = data_facts(dataset, {name: v for name, v in settings.items() if v is not None})
    click.echo(json.dumps(facts) if as_json else data_table(facts))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine: versions, device, active kernel, speed, disk."""
    from newllm.report.doctor import check_machine, machine_table

    facts = check_machine()
    click.echo(json.dumps(facts) if as_json else machine_table(facts))


@cli.command(context_settings={"allow_interspersed_args": False})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]...")
def bench(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run the benchmark NAME of a clone of the source; without a name, list them.

    Example: newllm bench inference --json
    """
    root = Path(newllm.__file__).parent.parent
    if not (root / "benchmarks" / "__init__.py").exists():
        raise UserError(
            f"bench: no folder benchmarks in {root}; benchmarks are no part of the installed "
            "package, they need a clone of the source installed with pip install -e ."
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    import benchmarks

    if name is None:
        for known, about in benchmarks.names().items():
            click.echo(f"{known:<16}  {about}")
        return
    command = benchmarks.find(name)
    with command.make_context(f"newllm bench {name}", list(arguments), **CONTEXT) as context:
        command.invoke(context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/ARCHITECTURE.md lists them)."""
    try:
        result = cli.main(args=arguments, prog_name="newllm", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 0
    except click.ClickException as error:
        return _complain(" ".join(error.format_message().split()))
    except UserError as error:
        return _complain(str(error))
    except Stopped as stop:
        click.echo(f"\n{stop}", err=True)
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("", err=True)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _FULL_OR_READONLY:
            raise
        return _complain(
            f"{error.filename or 'output'}: {error.strerror}; nothing written before is lost: "
            "free space there, then go on with --resume (or begin in another --out)"
        )


def _complain(message: str) -> int:
    click.echo(f"newllm: {message}", err=True)
    return 2
