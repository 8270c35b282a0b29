"""The command line stays as people's scripts know it: verbs, options, values and defaults.

A line that vanishes from `command_line.txt` breaks somebody's script, and belongs in CHANGELOG.md.
What is new is written there by `python -m tests.cli.test_frozen`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from newllm.cli import cli

FILE = Path(__file__).with_name("command_line.txt")


def lines(group: click.Group = cli, path: str = "newllm") -> Iterator[str]:
    """One for every argument and option: names, type, default."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from lines(command, f"{path} {name}")
        else:
            yield from (f"{path} {name} {described(each)}" for each in command.params)


def described(parameter: click.Parameter) -> str:
    facts = parameter.to_info_dict()
    kind = facts["type"]
    value = "|".join(kind["choices"]) if "choices" in kind else kind["param_type"]
    is_option = isinstance(parameter, click.Option)
    names = (
        "/".join([*facts["opts"], *facts["secondary_opts"]])
        if is_option
        else str(parameter.name).upper()
    )
    value = "flag" if facts.get("is_flag") else value
    many = "..." if facts["multiple"] or facts["nargs"] != 1 else ""
    required = " required" if facts["required"] else ""
    default = facts.get("default")
    is_plain = isinstance(default, str | int | float) and not facts.get("is_flag")
    return f"{names} {value}{many}{required}" + (f" = {default}" if is_plain else "")


def test_the_command_line_is_as_it_was() -> None:
    then, now = FILE.read_text(encoding="utf-8").splitlines(), list(lines())
    assert [line for line in then if line not in now] == [], "gone, or changed"
    assert [line for line in now if line not in then] == [], "new: write it down"


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
