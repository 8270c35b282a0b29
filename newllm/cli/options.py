"""Options that several commands share, and the one way an option takes several words.

Options of settings are generated from `config.py`, where each is defined once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic_core import PydanticCustomError

from newllm.cli.help_pages import Command, PathParamType
from newllm.config import (
    ARCHITECTURES,
    ModelSettings,
    Settings,
    no_option_name,
    option_name,
    parse_size,
)
from newllm.datasets import DATASETS
from newllm.inference.sampling import MAX_NEW_TOKENS, Sampling
from newllm.model.spec import COUNTS, RECALL_SLOTS, SPECS
from newllm.settings import resolve

_PATHS = {"data", "tokenizer_file", "out", "init_from"}
"""Settings that may name a file or folder: shells complete them."""

SEVERAL = ("columns", "splits")
"""Settings whose option takes several words, in a command of the class `SeveralWords`."""

_FOLLOWING = {"embed_dim", "hidden_dim", "pair_rows"}
"""Settings that `settings.resolve` makes of others."""


def setting_options(
    *fields: str, several: Sequence[str] = (), default: str | None = None
) -> Callable[[Any], Any]:
    """Add an option for each of these settings (default: all), from its definition.

    Args:
        fields: names of settings.
        default: what is said of the value without the option (default: what a training takes).
        several: those of them that take several words (the command has to be of the class
            `SeveralWords`); their values come as a tuple, empty where none is given.
    """

    names = fields or [name for name in Settings.model_fields if name != "dataset"]
    return _together(
        *(_setting_option(n, n in several, default or _default_of_training(n)) for n in names)
    )


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Add several options, shown in this order."""
    return lambda command: functools.reduce(lambda f, add: add(f), reversed(options), command)


def _default_of_training(field: str) -> str:
    """What a training takes where a setting is not given, as `settings.resolve` decides it."""
    info = Settings.model_fields[field]
    memories = {"recall_slots": RECALL_SLOTS, "counts": f"{COUNTS / 1e6:g}MB"}
    recipe = {**SPECS["context"].recipe, **memories}
    if field in recipe:
        return f"{recipe[field]}; original: {getattr(_published(), field)}"
    if field in _FOLLOWING:
        return "follows from depth and context size"
    if info.is_required():
        return "the level's"
    return "" if info.default in (None, []) else f"{info.default}"


@functools.cache
def _published() -> Settings:
    """What `original` takes: its learning rate follows from its batch."""
    return resolve("dolly", {"architecture": "original"})


def _setting_option(field: str, several: bool, default: str) -> Callable[[Any], Any]:
    info = Settings.model_fields[field]
    repeated = get_origin(info.annotation) is list
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
    kind: Any = (
        kinds[0] if kinds and get_origin(info.annotation) is not Literal else info.annotation
    )
    said = f"{_sentence(info.description)}{default and f'  [default: {default}]'}"
    options: dict[str, Any] = {"help": said, "default": None}
    if repeated:  # None, not an empty list, where it is not given
        options |= {"callback": lambda _context, _option, values: values or None}
        options |= {"cls": SeveralWordsOption} if field in SEVERAL else {"multiple": True}
    if kind is bool:
        options["is_flag"] = True
    elif field == "architecture":
        options["type"] = Architecture()
    elif field == "counts":
        options["type"] = Size()
    elif field in _PATHS:
        options["type"] = PathParamType()
    elif get_origin(kind) is Literal:
        options["type"] = click.Choice(get_args(kind))
    else:
        options["type"] = kind
    if kind is bool and info.default is True:
        names = f"{option_name(field)}/{no_option_name(field)}"
        return click.option(names, field, **options)
    if several:
        options |= {"cls": SeveralWordsOption, "default": ()}
    return click.option(option_name(field), field, **options)


def _sentence(description: str | None) -> str:
    assert description
    return f"{description[0].upper()}{description[1:]}."


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Count(click.ParamType):
    """A number, at least 1, as people write large ones: `350M`, `1.4m`, `10B`, `4096`."""

    name = "count"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,12})?)([KMBT]?)", str(value).upper())
        number = round(float(found[1]) * _UNITS[found[2]]) if found else 0
        if not 0 < number < 10**18:
            self.fail(f"{value}: expected a number such as 350M, 10B or 4096", param, ctx)
        return number


class Size(click.ParamType):
    """A number of bytes as people write it: `8MB`, `500kB`, `0`."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


AUTO = "auto"


class CountOrAuto(Count):
    """Such a number, or `auto`: chosen for the time that is given."""

    def convert(  # type: ignore[override]
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        return AUTO if value == AUTO else super().convert(value, param, ctx)


def params_option(text: str, auto: bool = False) -> Callable[[Any], Any]:
    """A budget of parameters, from which a model's depth and widths follow."""
    kind = CountOrAuto() if auto else Count()
    return click.option("--params", type=kind, metavar="COUNT|auto" if auto else None, help=text)


class Architecture(click.ParamType):
    """One of the package's architectures, or `FILE.py:CLASS`, a block of one's own."""

    name = "architecture"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        try:
            return ModelSettings.known_architecture(str(value))
        except PydanticCustomError as error:
            self.fail(f"{value}: {error.message()}", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(ARCHITECTURES)}|FILE.py:CLASS]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in ARCHITECTURES if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


class DatasetOrHub(click.Choice):
    """A data set's name, or any set of the Hub."""

    def __init__(self) -> None:
        super().__init__(list(DATASETS))

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        return str(value) if str(value).startswith("hub:") else super().convert(value, param, ctx)


dataset_argument = click.argument("dataset", type=click.Choice(list(DATASETS)), metavar="DATASET")
file_argument = click.argument("file", type=PathParamType(), metavar="FILE")


def output_option(text: str) -> Callable[[Any], Any]:
    """The file or folder that a command writes."""
    return click.option(
        "-o", "--output", required=True, type=PathParamType(path_type=Path), help=text
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
weights_option = click.option(
    "--weights",
    type=click.Choice(["fp32", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Round the matrices to a smaller format, which is faster to read (CPU only).",
)

architecture_option = click.option(
    "--architecture",
    type=Architecture(),
    metavar="FILE.py:CLASS",
    help="The block of your own that FILE was trained with: a checkpoint runs no code by itself.",
)


_USUAL = Sampling()

sampling_options = _together(
    click.option("--max-new-tokens", default=MAX_NEW_TOKENS, show_default=True,
                 type=click.IntRange(min=1), help="Tokens written at most."),
    click.option("--min-new-tokens", default=0, type=click.IntRange(min=0),
                 help="Tokens before the answer may end."),
    click.option("--temperature", default=_USUAL.temperature, show_default=True,
                 type=click.FloatRange(min=0), help="0: always the likeliest token."),
    click.option("--top-p", default=_USUAL.top_p, show_default=True,
                 type=click.FloatRange(min=0, max=1, min_open=True),
                 help="Sample from the likeliest tokens of this total probability."),
    click.option("--repetition-penalty", default=_USUAL.repetition_penalty, show_default=True,
                 type=click.FloatRange(min=1),
                 help="Divide the scores of the 64 tokens written last by it."),
    click.option("--seed", default=None, type=click.IntRange(min=0), help="Same seed, same text."),
)  # fmt: skip
"""Options of everything that writes text."""

best_of_option = click.option(
    "--best-of", default=1, show_default=True, type=click.IntRange(1, 64),
    help="Write so many answers and take the one that the reward head likes best.",
)  # fmt: skip

serving_options = _together(
    click.option("--host", default="127.0.0.1", show_default=True,
                 help="Address to listen on; this one is for this machine alone."),
    click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
                 help="Port to listen on; 0: a free one."),
    click.option("--api-key", envvar="NEWLLM_API_KEY",
                 help="Key that clients must send (or the variable NEWLLM_API_KEY)."),
    click.option("--sessions-dir", metavar="DIR", type=PathParamType(),
                 help="Folder for conversations that memory has no room for, and for all "
                 "as they are said, so that nothing is lost when the server stops."),
    click.option("--max-requests", default=64, show_default=True,
                 type=click.IntRange(min=1), help="Answers written at the same time."),
    click.option("--queue", default=256, show_default=True, type=click.IntRange(min=0),
                 help="Answers that wait their turn besides; further ones are refused (429)."),
    click.option("--max-sessions", default=256, show_default=True,
                 type=click.IntRange(min=1), help="Conversations kept in memory."),
    click.option("--alias", "aliases", metavar="NAME[=MODEL]", multiple=True,
                 help="Another name of a model (the first); may be given several times."),
    click.option("--allow-host", "allow_hosts", metavar="NAME", multiple=True,
                 help="Another host name to answer under, as host.docker.internal; *: any."),
    click.option("--allow-origin", "allow_origins", metavar="ORIGIN", multiple=True,
                 help="Pages that may use the server, as https://chat.example; *: any."),
    click.option("--log-level", default="warning", show_default=True,
                 type=click.Choice(["error", "warning", "info", "debug"]),
                 help="How much is logged; with info, a line a request, without texts or keys."),
)  # fmt: skip
"""Options of the server."""


class SeveralWordsOption(click.Option):
    """An option that takes every word up to the next option: `--num-layers 1 4 5`.

    The value is a tuple. Belongs to a command of the class `SeveralWords`.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, multiple=True, **settings)

    def make_metavar(self, ctx: click.Context) -> str:
        return f"{super().make_metavar(ctx)}..."


class SeveralWords(Command):
    """A command whose `SeveralWordsOption`s take several words.

    Click has only options with a fixed number of words, or given several times. So
    `--num-layers 1 4` is rewritten as `--num-layers 1 --num-layers 4` before click reads it;
    everything else (types, messages, `=`) stays click's.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        normalize = ctx.token_normalize_func or (lambda name: name)
        names = {
            normalize(name)
            for parameter in self.params
            if isinstance(parameter, SeveralWordsOption)
            for name in parameter.opts
        }
        rewritten: list[str] = []
        # The option whose words are being read, and whether the next word needs it before it.
        option, needs_name = "", False
        for position, word in enumerate(args):
            if word == "--":
                rewritten += args[position:]
                break
            if _is_option(word):
                name, given, _ = word.partition("=")
                option = name if normalize(name) in names else ""
                # The first word follows as it is; `--name=word` has it already.
                needs_name = bool(given)
            elif option:
                rewritten += [option] if needs_name else []
                needs_name = True
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


def _is_option(word: str) -> bool:
    """Whether a word begins another option; negative numbers do not."""
    return word.startswith("-") and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")
