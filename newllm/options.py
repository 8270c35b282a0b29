"""Arguments and options that several verbs of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click

from newllm.config import Settings, option_name
from newllm.levels import LEVELS


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
    if info.is_required():
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
            click.option("--repetition-penalty", default=1.0, show_default=True,
                         type=click.FloatRange(min=1),
                         help="Divide the scores of the 64 tokens written last by it."),
            click.option("--seed", default=None, type=click.IntRange(min=0),
                         help="Same seed, same text."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def serving_options(command: Any) -> Any:
    """Options of the server."""
    for option in reversed(
        [
            click.option("--host", default="127.0.0.1", show_default=True,
                         help="Address to listen on; this one is for this machine alone."),
            click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
                         help="Port to listen on; 0: a free one."),
            click.option("--api-key", envvar="NEWLLM_API_KEY",
                         help="Key that clients must send (or the variable NEWLLM_API_KEY)."),
            click.option("--sessions-dir", metavar="DIR",
                         help="Folder for conversations that memory has no room for, and for all "
                         "when the server stops."),
            click.option("--max-requests", default=64, show_default=True,
                         type=click.IntRange(min=1), help="Answers written at the same time."),
            click.option("--max-sessions", default=256, show_default=True,
                         type=click.IntRange(min=1), help="Conversations kept in memory."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command
