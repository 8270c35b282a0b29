"""The command line: `newllm VERB ...`. Options of `train` are generated from the settings.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

import newllm
from newllm import __version__
from newllm.cli import exchange, help_pages, planning, practice, progression, report, talk
from newllm.cli.help_pages import PathParamType
from newllm.cli.options import (
    DatasetOrHub,
    SeveralWords,
    architecture_option,
    dataset_argument,
    file_argument,
    json_option,
    params_option,
    setting_options,
    weights_option,
)
from newllm.cli.surroundings import prepare_streams, rarely_collect_garbage, refuse_variables
from newllm.config import read_yaml
from newllm.datasets import DATASETS
from newllm.errors import Stopped, UserError
from newllm.files import DISK_ERRORS, PATH_ERRORS

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat


def _same_dash(name: str) -> str:
    """`--num_layers` and `--num-layers` are one option, `hh-rlhf` and `hh_rlhf` one name."""
    return name.replace("_", "-")


CONTEXT = {"token_normalize_func": _same_dash, "help_option_names": ["-h", "--help"]}


@click.group(cls=help_pages.Verbs, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="newllm")
def cli() -> None:
    """Small language models without attention: train them level by level, and talk to them."""


@cli.command(cls=SeveralWords)
@dataset_argument
@setting_options()
@params_option(
    "Size of the model: sets its depth and widths, as `newllm plan` does. With auto it is what "
    "learns most in --minutes on this machine, or in --epochs of the rows.",
    auto=True,
)
@click.option("--resume", is_flag=True, help="Go on where the run of this name stopped.")
@click.option(
    "--config",
    metavar="FILE.yaml",
    type=PathParamType(),
    help="Settings file; flags take precedence.",
)
def train(
    dataset: str, resume: bool, config: str | None, params: int | str | None, **settings: Any
) -> None:
    """Train a model on DATASET: a level, text, wikitext2, or chat for your own rows.

    The levels are dolly, hh_rlhf, ultrachat, code_alpaca and math. A run can be stopped anywhere
    (Ctrl-C), and the same command with --resume goes on. text is books, notes and code before the
    levels, dolly_ja is Dolly in Japanese.

    Example: newllm train dolly --tokenizer word1000 --epochs 4
    """
    flags = {name: value for name, value in settings.items() if value is not None}
    file = read_yaml(config) if config else None
    if file and file.get("dataset", dataset) != dataset:
        raise UserError(f"{config}: settings of {file['dataset']}, not of {dataset}")
    if isinstance(params, str):
        from newllm.planning.size import fitted

        flags, params = fitted(dataset, flags, file or {}, resume, click.echo)
    from newllm.train.run import train as run

    run(dataset, flags, file, resume, params)


@cli.command(name="eval", cls=SeveralWords)
@file_argument
@setting_options("data", "columns", "splits", "subset", default="what FILE was trained on")
@setting_options("device")
@click.option(
    "--dataset", type=click.Choice(list(DATASETS)), metavar="DATASET",
    help="Read the rows as this data set's.",
)  # fmt: skip
@click.option("--batch-size", default=None, type=click.IntRange(min=1), help="Rows scored at once.")
@weights_option
@architecture_option
@click.option("--skills", is_flag=True, help="Check answers too: code, MATH results, preferences.")
@click.option(
    "--skill-rows", type=click.IntRange(min=1),
    help="Rows the skill check takes at most.  [default: 200]",
)  # fmt: skip
@click.option(
    "--run-code", is_flag=True, help="Run code answers, not only parse them: shut in, on Linux."
)
@json_option
def evaluate(
    file: str,
    data: str | None,
    columns: tuple[str, ...] | None,
    splits: tuple[str, ...] | None,
    subset: str | None,
    device: str | None,
    dataset: str | None,
    batch_size: int | None,
    weights: WeightFormat,
    architecture: str | None,
    skills: bool,
    skill_rows: int | None,
    run_code: bool,
    as_json: bool,
) -> None:
    """Score the checkpoint FILE on validation rows.

    Example: newllm eval checkpoints/best_new_llm_dolly_layers1_bpe.pt --data sample --json
    """
    if (run_code or skill_rows) and not skills:
        raise UserError("--run-code and --skill-rows belong to the skill check: add --skills")
    from newllm.evaluate.skills import require_skills
    from newllm.report.tables import evaluation_table
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights, architecture)
    if skills:
        require_skills(dataset or model.settings.dataset, run_code)
    given: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    place = data or model.settings.data
    names: dict[str, Any] = {"columns": columns, "splits": splits}
    result = model.evaluate(place, dataset, subset, **given, **names)
    if skills:
        count: dict[str, Any] = {} if skill_rows is None else {"rows": skill_rows}
        result["skills"] = model.skills(place, dataset, subset, run_code=run_code, **count, **names)
    click.echo(json.dumps(result) if as_json else evaluation_table(result))


@cli.command()
@file_argument
@json_option
def info(file: str, as_json: bool) -> None:
    """Say what checkpoint FILE is: settings, data, metrics, versions.

    Example: newllm info checkpoints/best_new_llm_dolly_layers1_bpe.pt
    """
    from newllm.report.tables import checkpoint_facts, facts_table

    facts = checkpoint_facts(file)
    click.echo(json.dumps(facts) if as_json else facts_table(facts))


@cli.command(cls=SeveralWords)
@click.argument("dataset", type=DatasetOrHub(), metavar="DATASET|hub:ORG/NAME")
@setting_options(
    "data", "columns", "splits", "documents", "decontaminate", "subset", "tokenizer", "vocab_size",
    "max_samples", "max_seq_length", "seed",
)  # fmt: skip
@json_option
def data(dataset: str, as_json: bool, **settings: Any) -> None:
    """Show what DATASET's rows become: counts, malformed rows, a rendered example.

    A set of the Hub, hub:ORG/NAME, is read as rows of your own (chat).

    Example: newllm data dolly --data my_folder --tokenizer word1000
    """
    from newllm.report.tables import data_facts, data_table

    if dataset.startswith("hub:"):
        if settings["data"] is not None:
            raise UserError(f"{dataset} says where the rows are; omit --data")
        dataset, settings["data"] = "chat", dataset
    facts = data_facts(dataset, {name: v for name, v in settings.items() if v is not None})
    click.echo(json.dumps(facts) if as_json else data_table(facts))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine: versions, device, active kernel, speed, disk.

    Example: newllm doctor --json
    """
    from newllm.report.doctor import check_machine
    from newllm.report.text import columns

    facts = check_machine()
    click.echo(json.dumps(facts) if as_json else columns(facts))


def _benchmarks() -> ModuleType:
    """The benchmarks of a clone of the source."""
    root = Path(newllm.__file__).parent.parent
    if not (root / "benchmarks" / "__init__.py").exists():
        raise UserError(
            f"bench: no folder benchmarks in {root}; benchmarks are no part of the installed "
            "package, they need a clone of the source installed with pip install -e ."
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    import benchmarks

    return benchmarks


def _benchmark_names(_context: object, _argument: object, beginning: str) -> list[str]:
    """Names that a shell completes."""
    try:
        return [name for name in _benchmarks().names() if name.startswith(beginning)]
    except UserError:
        return []


@cli.command(context_settings={"allow_interspersed_args": False})
@click.argument("name", required=False, shell_complete=_benchmark_names)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]...")
def bench(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run the benchmark NAME of a clone of the source; without a name, list them.

    Example: newllm bench inference --json
    """
    benchmarks = _benchmarks()
    if name is None:
        for known, about in benchmarks.names().items():
            click.echo(f"{known:<16}  {about}")
        return
    command = benchmarks.find(name)
    with command.make_context(f"newllm bench {name}", list(arguments), **CONTEXT) as context:
        command.invoke(context)


for module in (talk, progression, practice, report, exchange, planning, help_pages):
    for verb in module.COMMANDS:
        cli.add_command(verb)


_RESUMABLE = {"train", "climb", "prefer", "practise"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/ARCHITECTURE.md lists them)."""
    prepare_streams()
    rarely_collect_garbage()
    try:
        refuse_variables()
        return _run(arguments)
    except click.ClickException as error:
        return _complain(" ".join(error.format_message().split()))
    except UserError as error:
        return _complain(str(error))
    except Stopped as stop:
        with suppress(OSError):  # the terminal may be gone
            click.echo(str(stop), err=True)
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("", err=True)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        return 0
    except (MemoryError, RuntimeError) as error:  # torch is not imported for its own kinds
        if not isinstance(error, MemoryError) and not _is_memory(error):
            raise
        return _complain(
            "out of memory; a smaller model, --batch-size or --max-seq-length needs less"
        )
    except OSError as error:
        if error.errno not in DISK_ERRORS | PATH_ERRORS:
            raise
        where = f"{error.filename or 'output'}: {error.strerror}; "
        if error.errno in PATH_ERRORS:
            return _complain(f"{where}give another path")
        again = "give the command again"
        if set((sys.argv[1:] if arguments is None else arguments)[:1]) & _RESUMABLE:
            again = "go on with --resume (or begin in another --out)"
        _give_up_output()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free space there" if full else "let it be written to"
        return _complain(f"{where}nothing written before is lost: {mend}, then {again}")


def _is_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, as torch says it on CPUs and on GPUs."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _give_up_output() -> None:
    """What cannot be written is not tried again by Python as it ends, with a message of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # no file of the system
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="newllm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 0
    return result if isinstance(result, int) else 0


def _complain(message: str) -> int:
    click.echo(f"newllm: {message}", err=True)
    return 2
