"""The verbs that show where one stands: `progress` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from newllm.cli.options import json_option, setting_options
from newllm.files import write_text


@click.command()
@setting_options("out")
@click.option("--html", metavar="FILE", help="Also write one self-contained page.")
@json_option
def progress(out: str | None, html: str | None, as_json: bool) -> None:
    """Show every level with its best run: status, numbers, mark, verdict, what to do next.

    Example: newllm progress --out checkpoints --html progress.html
    """
    from newllm.report.progress import read_progress
    from newllm.report.progress_table import progress_table
    from newllm.verdict import OUT

    found = read_progress(Path(out or OUT))
    if html is not None:
        from newllm.report.page import progress_page

        write_text(Path(html), progress_page(found))
    click.echo(json.dumps(found.facts()) if as_json else progress_table(found))


COMMANDS = (progress,)
