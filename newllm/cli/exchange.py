"""The verbs that take a model elsewhere and back: `export` and `import`."""

from __future__ import annotations

from pathlib import Path

import click

from newllm.cli.options import file_argument
from newllm.errors import UserError


@click.command()
@file_argument
@click.option(
    "--format",
    "kind",
    type=click.Choice(["hf"]),
    default="hf",
    show_default=True,
    help="hf: a folder for Hugging Face transformers.",
)
@click.option("-o", "--output", required=True, type=Path, help="The folder to write.")
@click.option("--push", metavar="REPO", help="Also upload it to this repository on the Hub.")
@click.option("--public", is_flag=True, help="With --push: a repository that is new is public.")
def export(file: str, kind: str, output: Path, push: str | None, public: bool) -> None:
    """Write checkpoint FILE as a folder that other software loads.

    Example: newllm export checkpoints/best_new_llm_dolly_layers1_bpe.pt -o my_model
    """
    if public and push is None:
        raise UserError("--public belongs to --push")
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, "cpu")
    from newllm.export.hf import export_hf

    difference = export_hf(model, output)
    click.echo(
        f"{output}: {model.parameters:,} parameters; read again, its logits differ by at most "
        f"{difference:.1e}.\nUse it: transformers.pipeline('text-generation', '{output}', "
        f"trust_remote_code=True)\nBring it back: newllm import {output} -o FILE"
    )
    if push is not None:
        from newllm.export.push import push as upload

        click.echo(f"Uploaded: {upload(output, push, private=not public)}")


@click.command(name="import")
@click.argument("folder", metavar="DIR", type=Path)
@click.option("-o", "--output", required=True, type=Path, help="The checkpoint to write.")
def import_(folder: Path, output: Path) -> None:
    """Make a checkpoint of DIR, a folder that `export --format hf` wrote; none of its code runs.

    Example: newllm import my_model -o my_model.pt
    """
    from newllm.export.hf_import import import_hf

    parameters = import_hf(folder, output)
    click.echo(f"{output}: {parameters:,} parameters.\nTalk to it: newllm chat {output}")


COMMANDS = (export, import_)
