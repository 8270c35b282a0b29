"""Options that take several words."""

from __future__ import annotations

from typing import Any

import click
import pytest

from newllm.cli import CONTEXT
from newllm.cli.options import SeveralWords, SeveralWordsOption


@click.command(cls=SeveralWords)
@click.argument("dataset")
@click.option("--num-layers", cls=SeveralWordsOption, type=int, default=())
@click.option("--kind", cls=SeveralWordsOption, type=click.Choice(["a", "b"]), default=())
@click.option("--shift", cls=SeveralWordsOption, type=float, default=())
@click.option("--minutes", type=float)
@click.option("--flag", is_flag=True)
def command(**given: Any) -> None:
    """For the tests."""


def parse(*words: str) -> dict[str, Any]:
    return command.make_context("command", list(words), **CONTEXT).params


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dolly", {}),
        ("dolly --num-layers 1", {"num_layers": (1,)}),
        ("dolly --num-layers 1 4 5", {"num_layers": (1, 4, 5)}),
        ("dolly --num_layers 1 4 --flag", {"num_layers": (1, 4), "flag": True}),
        ("dolly --num-layers 1 4 --kind a b", {"num_layers": (1, 4), "kind": ("a", "b")}),
        ("dolly --num-layers 1 --num-layers 4 5", {"num_layers": (1, 4, 5)}),
        ("dolly --num-layers=1 4", {"num_layers": (1, 4)}),
        ("dolly --shift -1 -.5 2", {"shift": (-1.0, -0.5, 2.0)}),
        ("--minutes 3 dolly --num-layers 2", {"minutes": 3.0, "num_layers": (2,)}),
        ("--num-layers 1 4 -- dolly", {"num_layers": (1, 4)}),
    ],
)
def test_words_up_to_the_next_option(words: str, found: dict[str, Any]) -> None:
    nothing = {"num_layers": (), "kind": (), "shift": (), "minutes": None, "flag": False}
    assert parse(*words.split()) == {**nothing, "dataset": "dolly", **found}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dolly --num-layers 1 two 3", r"--num-layers'?: 'two' is not a valid integer"),
        ("dolly --kind a c", r"--kind'?: 'c' is not one of"),
        ("dolly --num-layers", r"--num-layers'? requires an argument"),
        ("dolly --num-layers --flag", r"'--num-layers' requires an argument|'--flag' is not"),
        ("dolly math --num-layers 1", "unexpected extra argument"),
        ("--num-layers 1 dolly", "'dolly' is not a valid integer"),
    ],
)
def test_mistakes_name_option_and_word(words: str, says: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        parse(*words.split())
    import re

    assert re.search(says, refused.value.format_message())


def test_help_shows_that_there_may_be_more() -> None:
    with click.Context(command, info_name="command") as context:
        assert "--num-layers INTEGER..." in command.get_help(context)
