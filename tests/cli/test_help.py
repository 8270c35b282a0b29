"""What help pages say, what shells complete, and that colours can be turned off."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from newllm.cli import CONTEXT, cli
from newllm.cli.help_pages import VERBS


def commands(group: click.Group = cli, path: str = "newllm") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name; groups are walked through."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ALL = dict(commands())


def page(name: str) -> str:
    command = ALL[name]
    return command.get_help(click.Context(command, info_name=name, **CONTEXT))


def test_every_verb_stands_in_one_section() -> None:
    assert sorted(name for names in VERBS.values() for name in names) == sorted(cli.commands)


@pytest.mark.parametrize("name", ALL)
def test_every_page_gives_an_example_that_parses(name: str) -> None:
    """An example begins with the command itself, and every option it uses exists."""
    command = ALL[name]
    found = re.search(r"Example:\s+(.*?)(\n\n|$)", page(name), re.DOTALL)
    assert found, f"{name}: no example"
    example = " ".join(found[1].split()).removeprefix('eval "$(').removesuffix(')"')
    assert example.startswith(f"{name} ") or example == name
    known = {option for parameter in command.params for option in parameter.opts}
    used = set(re.findall(r"(?<= )--?[a-z][a-z0-9-]*", example))
    assert used <= known or name.endswith("bench")  # whose options are the benchmark's


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_explained_in_a_sentence(name: str) -> None:
    for option in ALL[name].params:
        if isinstance(option, click.Option):
            text = (option.help or "").split("  [default")[0]
            first = text[:1].isupper() or re.match(r"(hub|hf|0|--|\d)", text)
            assert (first and text.endswith(".")) or text.endswith(")"), f"{option.name}: {text!r}"


def test_many_options_are_shown_in_groups() -> None:
    sections = re.findall(r"^([A-Z]\w+):$", page("newllm train"), re.MULTILINE)
    assert sections == ["Data", "Model", "Training", "Run", "Options"]
    assert re.findall(r"^(\w+):$", page("newllm generate"), re.MULTILINE) == ["Options"]


@pytest.mark.parametrize(
    ("words", "beginning", "completed"),
    [
        ([], "pro", ["progress"]),
        (["train"], "do", ["dolly", "dolly-ja"]),
        (["train", "dolly"], "--num", ["--num-layers"]),
        (["train", "dolly", "--tokenizer"], "w", ["word1000"]),
        (["bench"], "train", ["train-speed"]),
        (["completion"], "f", ["fish"]),
    ],
)
def test_shells_complete(words: list[str], beginning: str, completed: list[str]) -> None:
    shell = BashComplete(cli, dict(CONTEXT), "newllm", "_NEWLLM_COMPLETE")
    assert [item.value for item in shell.get_completions(words, beginning)] == completed


@pytest.mark.parametrize("words", [["chat"], ["train", "dolly", "--data"], ["climb", "--out"]])
def test_shells_complete_files(words: list[str]) -> None:
    shell = BashComplete(cli, dict(CONTEXT), "newllm", "_NEWLLM_COMPLETE")
    assert [item.type for item in shell.get_completions(words, "")] == ["file"]


def newllm(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "newllm", *arguments]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells_own(shell: str) -> None:
    script = subprocess.run(newllm("completion", shell), capture_output=True, text=True, check=True)
    assert f"_NEWLLM_COMPLETE={shell}_complete" in script.stdout
    if program := shutil.which(shell):
        flags = ["--no-execute"] if shell == "fish" else ["-n"]
        subprocess.run([program, *flags], input=script.stdout, text=True, check=True)


def test_no_color(tmp_path: Path) -> None:
    """In a terminal, with NO_COLOR, nothing is coloured; without it the live display is."""
    wait = [
        "train", "dolly", "--data", "sample", "--minutes", "0.01", "--context-dim", "64",
        "--embed-dim", "16", "--hidden-dim", "24", "--max-samples", "300", "--device", "cpu",
    ]  # fmt: skip
    coloured = re.compile(rb"\x1b\[[\d;]*?(?<![\d])(3[0-7]|9[0-7]|38)[;m]")
    for variables, seen in (({"NO_COLOR": "1"}, False), ({}, True)):
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
        environment |= {"TERM": "xterm-256color", **variables}
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            newllm(*wait, "--out", str(tmp_path / str(seen))),
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
        ) as process:  # fmt: skip
            os.close(theirs)
            written = b""
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # how Linux tells that the other side is closed
                    break
                if not part:
                    break
                written += part
        os.close(ours)
        assert process.returncode == 0, written.decode()
        assert bool(coloured.search(written)) is seen
