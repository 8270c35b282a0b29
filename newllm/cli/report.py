"""The verbs that show where one stands: `progress` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from newllm.cli.help_pages import Command, PathParamType
from newllm.cli.options import (
    SeveralWords,
    dataset_argument,
    json_option,
    params_option,
    setting_options,
)
from newllm.config import DEFAULT_OUT, Settings
from newllm.errors import UserError
from newllm.files import write_text

COMPARED_FIELDS = tuple(
    name for name in Settings.model_fields if name not in ("dataset", "name", "shard")
)
"""Settings of `compare`; the names of its runs follow from the values."""

_ONCE = ("out", "tensorboard", "device", "save_minutes", "rehearse", "freeze_old", "columns",
         "splits", "documents", "decontaminate", "track")  # fmt: skip

SWEPT_FIELDS = tuple(name for name in COMPARED_FIELDS if name not in _ONCE)
"""Those that may have several values: single values that change what is learned."""


@click.command(cls=Command)
@setting_options("out")
@click.option(
    "--html", metavar="FILE", type=PathParamType(), help="Also write one self-contained page."
)
@json_option
def progress(out: str | None, html: str | None, as_json: bool) -> None:
    """Show every level with its best run: status, numbers, mark, verdict, what to do next.

    Example: newllm progress --out checkpoints --html progress.html
    """
    from newllm.report.progress import progress_table, read_progress

    found = read_progress(Path(out or DEFAULT_OUT))
    if html is not None:
        from newllm.report.page import progress_page

        page = progress_page(found)
        try:
            write_text(Path(html), page)
        except OSError as error:
            raise UserError(f"--html {html}: cannot be written: {error.strerror}") from None
    click.echo(json.dumps(found.facts()) if as_json else progress_table(found))
    if html is not None and not as_json:
        click.echo(f"\nPage: {html}")


@click.command(cls=SeveralWords)
@dataset_argument
@setting_options(*COMPARED_FIELDS, several=SWEPT_FIELDS)
@params_option("Size of every model: sets its depth and widths.")
def compare(dataset: str, params: int | None, **settings: Any) -> None:
    """Train DATASET once for each combination of settings, and compare what they reach.

    Every setting that changes what is learned may have several values. Runs that are finished are
    not run again, an interrupted one goes on. The report is compare_DATASET.json, .md and .svg in
    --out.

    Example: newllm compare dolly --num-layers 1 4 5 6 7 --minutes 10
    """
    from newllm.curriculum.compare import compare as run
    from newllm.report.comparison import comparison_table

    given = {name: value for name, value in settings.items() if value not in (None, ())}
    sweeps = {name: value for name, value in given.items() if name in SWEPT_FIELDS}
    single = {name: value for name, value in given.items() if name not in SWEPT_FIELDS}
    result = run(dataset, sweeps, single, params)
    folder = Path(single.get("out", DEFAULT_OUT))
    click.echo(f"\n{comparison_table(result)}\n\nReport: {folder / f'compare_{dataset}.md'}")


COMMANDS = (progress, compare)
