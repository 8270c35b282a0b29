"""The benchmarks: `newllm bench NAME`. Each is a module here that has a click command `command`.

The first line of the module's docstring is what `newllm bench` lists, the whole of it the text of
`newllm bench NAME --help`. `measure.py` is what they share.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import click

from newllm.errors import UserError, did_you_mean


def names() -> dict[str, str]:
    """Benchmark -> what it measures, in one line. Reads the files; imports nothing."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        if "command" in functions:
            name = file.stem.replace("_", "-")
            found[name] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def find(name: str) -> click.Command:
    """The command of a benchmark (`time_to_quality` is `time-to-quality`).

    Raises:
        UserError: there is none of that name.
    """
    known = names()
    if name.replace("_", "-") not in known:
        raise UserError(f"unknown benchmark {name}{did_you_mean(name, known)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    command: click.Command = module.command
    # Indented lines of the docstring are commands to copy: they keep their line breaks.
    command.help = (module.__doc__ or "").replace("\n\n    ", "\n\n\b\n    ")
    return command
