"""Commands of the progression."""

from __future__ import annotations

from pathlib import Path

import click

from newllm.cli.options import file_argument, setting_options


@click.command()
@file_argument
@setting_options("num_layers", "context_dim", "embed_dim", "hidden_dim", "seed")
@click.option("-o", "--output", required=True, type=Path, help="The file to write.")
def grow(file: str, output: Path, seed: int | None, **sizes: int | None) -> None:
    """Make the model of checkpoint FILE larger, without changing what it says.

    Depth, context and feed-forward grow to any larger size, the stream (--embed-dim) to multiples.

    Example: newllm grow checkpoints/new_llm_dolly_layers1_bpe_final.pt --num-layers 4 -o grown.pt
    """
    from newllm.curriculum.grow import grow_file

    given = {name: size for name, size in sizes.items() if size is not None}
    shape = grow_file(Path(file), output, given, seed or 0)
    click.echo(
        f"{output}: {shape.num_layers} layers, context {shape.context_dim}, stream "
        f"{shape.embed_dim}, feed-forward {shape.hidden_dim}; it says what {file} says.\n"
        f"Train it on: newllm train DATASET --from {output}"
    )
