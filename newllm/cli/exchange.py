"""The verbs that take a model elsewhere and back: `export` and `import`."""

from __future__ import annotations

from pathlib import Path

import click

from newllm.cli.help_pages import Command, PathParamType
from newllm.cli.options import file_argument, output_option
from newllm.errors import UserError


@click.command(cls=Command)
@file_argument
@click.option(
    "--format",
    "kind",
    type=click.Choice(["hf", "onnx"]),
    default="hf",
    show_default=True,
    help="hf: for Hugging Face transformers; onnx: graphs for onnxruntime and browsers.",
)
@output_option("The folder to write.")
@click.option("--int8", is_flag=True, help="With onnx: matrices rounded to int8.")
@click.option("--push", metavar="REPO", help="Also upload it to this repository on the Hub.")
@click.option("--public", is_flag=True, help="With --push: a repository that is new is public.")
def export(file: str, kind: str, output: Path, int8: bool, push: str | None, public: bool) -> None:
    """Write checkpoint FILE as a folder that other software loads.

    Example: newllm export checkpoints/best_new_llm_dolly_layers1_bpe.pt -o my_model
    """
    if public and push is None:
        raise UserError("--public belongs to --push")
    if int8 and kind != "onnx":
        raise UserError("--int8 belongs to --format onnx")
    from newllm.results.records import reached, without_counts
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, "cpu")
    if kind == "onnx":
        from newllm.export.onnx_folder import export_onnx

        found = export_onnx(model, output, int8)
        click.echo(
            f"{output}: step.onnx and prefill.onnx, {model.parameters:,} parameters. In "
            f"onnxruntime their logits differ by at most {found.logits:.1e} (of up to "
            f"{found.largest:.1f}),\n"
            f"the next token's distribution by {found.bits:.2g} bits, and its likeliest token is "
            f"the same for {found.first_choice:.1%} of the tokens tried."
        )
        if model.counts_bytes:
            metrics, alone = model.metrics, without_counts(model.metrics)
            so = (
                "what they reach so was not measured"
                if alone is None
                else f"on the validation rows they reach {alone}, not "
                + reached(metrics["bpb"], metrics["ppl"])
            )
            size = f"{model.counts_bytes / 1e6:.1f} MB of counts"
            click.echo(f"The graphs are without the {size}: {so}.")
    else:
        from newllm.export.hf import export_hf

        difference = export_hf(model, output)
        click.echo(
            f"{output}: {model.size}; read again, its logits differ by at most "
            f"{difference:.1e}.\nUse it: transformers.pipeline('text-generation', '{output}', "
            f"trust_remote_code=True)\nBring it back: newllm import {output} -o FILE"
        )
    if push is not None:
        from newllm.export.folder import push as upload

        click.echo(f"Uploaded: {upload(output, push, private=not public)}")


@click.command(name="import", cls=Command)
@click.argument("folder", metavar="DIR", type=PathParamType(path_type=Path))
@output_option("The checkpoint to write.")
def import_(folder: Path, output: Path) -> None:
    """Make a checkpoint of DIR, a folder that `export --format hf` wrote; none of its code runs.

    Example: newllm import my_model -o my_model.pt
    """
    from newllm.export.hf_import import import_hf

    size = import_hf(folder, output)
    click.echo(f"{output}: {size}.\nTalk to it: newllm chat {output}")


COMMANDS = (export, import_)
