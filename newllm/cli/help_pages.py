"""How help looks: the verbs by what they are for, many options by what they set; completion."""

from __future__ import annotations

import inspect
import math
import os
from typing import Any

import click
from click.shell_completion import get_completion_class

from newllm.config import DataSettings, ModelSettings, RunSettings, TrainingSettings

VERBS = {
    "Train": ("train", "climb", "prefer", "practise", "grow", "compare", "tokenizer"),
    "Judge": ("eval", "progress", "info"),
    "Talk": ("chat", "generate", "serve"),
    "Take along": ("export", "import"),
    "Look around": ("data", "doctor", "plan", "bench", "completion"),
}

_SETTINGS = {
    "Data": DataSettings,
    "Model": ModelSettings,
    "Training": TrainingSettings,
    "Run": RunSettings,
}
_MANY = 15
"""More options than this are shown in groups."""

_WHERE = {
    "bash": 'eval "$(newllm completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(newllm completion zsh)"     # in ~/.zshrc, after compinit',
    "fish": "newllm completion fish | source      # in ~/.config/fish/config.fish",
}


class PathParamType(click.Path):
    """A path; `~` at its beginning is the home folder, also where the shell left it (`--out=~/x`).

    Raises:
        BadParameter: it is empty, as an unset variable of the shell leaves it; that would be the
            folder one is in.
    """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not str(value):
            self.fail("empty; name a file or folder (. is the one you are in)", param, ctx)
        begins = str(value).split("/", 1)[0]
        known = begins.startswith("~") and os.path.expanduser(begins) != begins
        return super().convert(os.path.expanduser(value) if known else value, param, ctx)


class Command(click.Command):
    """A command whose help shows its example unbroken, and many options in groups; its numbers are
    finite."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # A paragraph after \b keeps its lines: an example is to be copied.
        text = inspect.cleandoc(self.help or "")
        self.help = text.replace("\n\nExample: ", "\n\n\b\nExample:\n  ")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    # Bounds do not hold NaN: it is neither less nor more than anything.
                    raise click.BadParameter(f"{number}: expected a number", ctx, parameter)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*_SETTINGS, "Options")}
        parameters = self.get_params(ctx)
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups[_group(parameter) if len(parameters) > _MANY else "Options"].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


class Verbs(click.Group):
    """The top command: its help shows the verbs in groups, their summaries uncut."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in VERBS.items():
            with formatter.section(section):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(limit=200)) for name in names]
                )


def _group(parameter: click.Parameter) -> str:
    if parameter.name == "params":  # not a setting, but it stands for some
        return "Model"
    for name, settings in _SETTINGS.items():
        if parameter.name in settings.model_fields:
            return name
    return "Options"


@click.command(
    cls=Command,
    epilog="\b\nOnce for all new shells:\n" + "\n".join(f"  {line}" for line in _WHERE.values()),
)
@click.argument("shell", type=click.Choice(list(_WHERE)), metavar="[bash|zsh|fish]")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete verbs, options, data sets and files.

    Example: eval "$(newllm completion bash)"
    """
    complete = get_completion_class(shell)
    assert complete is not None, shell
    top = context.find_root().command
    click.echo(complete(top, {}, "newllm", "_NEWLLM_COMPLETE").source())


COMMANDS = (completion,)
