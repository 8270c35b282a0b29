"""Commands that write text: generate, chat, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from newllm.cli.help_pages import Command, PathParamType
from newllm.cli.options import (
    architecture_option,
    best_of_option,
    file_argument,
    sampling_options,
    serving_options,
    setting_options,
    weights_option,
)
from newllm.config import option_name
from newllm.errors import UserError, did_you_mean, require_packages

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat
    from newllm.trained import TrainedModel


@click.command(cls=Command)
@file_argument
@click.option("--prompt", required=True, help="What is said to the model.")
@sampling_options
@best_of_option
@setting_options("device")
@weights_option
@architecture_option
def generate(
    file: str,
    prompt: str,
    max_new_tokens: int,
    min_new_tokens: int,
    device: str | None,
    weights: WeightFormat,
    architecture: str | None,
    best_of: int,
    **sampling: Any,
) -> None:
    """Print the answer of checkpoint FILE to a prompt.

    Example: newllm generate best.pt --prompt "What is the capital of France?"
    """
    from newllm.inference.sampling import Sampling
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, _writing_device(device), weights, architecture)
    drawn = Sampling(**sampling)
    for piece in model.generate(prompt, drawn, max_new_tokens, min_new_tokens, best_of):
        click.echo(piece, nl=False)
    click.echo()


@click.command(cls=Command)
@file_argument
@click.option("--system", default=None, help="What the model is told before the conversation.")
@click.option(
    "--load",
    metavar="SESSION",
    type=PathParamType(),
    help="Go on with a saved conversation, as it was drawn.",
)
@sampling_options
@best_of_option
@setting_options("device")
@weights_option
@architecture_option
def chat(
    file: str,
    system: str | None,
    load: str | None,
    max_new_tokens: int,
    min_new_tokens: int,
    device: str | None,
    weights: WeightFormat,
    architecture: str | None,
    best_of: int,
    **sampling: Any,
) -> None:
    """Talk to checkpoint FILE; the conversation is held in its fixed-size state.

    Example: newllm chat checkpoints/best_new_llm_dolly_layers1_bpe.pt --temperature 0.5
    """
    from newllm.chat.terminal import converse
    from newllm.inference.sampling import Sampling
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, _writing_device(device), weights, architecture)
    given = click.get_current_context().get_parameter_source
    for name in ("system", *sampling):
        if load and given(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"{option_name(name)}: --load goes on as that conversation was begun")
    if load:
        session = model.resume_chat(load, best_of)
    else:
        session = model.chat(Sampling(**sampling), system, best_of)
    converse(session, f"{file}: {model.size}", max_new_tokens, min_new_tokens)


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=PathParamType(), metavar="FILE...")
@serving_options
@setting_options("device")
@weights_option
@architecture_option
def serve(
    files: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    sessions_dir: str | None,
    max_requests: int,
    queue: int,
    max_sessions: int,
    aliases: tuple[str, ...],
    allow_hosts: tuple[str, ...],
    allow_origins: tuple[str, ...],
    log_level: str,
    device: str | None,
    weights: WeightFormat,
    architecture: str | None,
) -> None:
    """Serve checkpoint FILE over HTTP: OpenAI's API, and conversations kept as their state.

    Several files are several models, each with its name.

    Example: newllm serve checkpoints/best_new_llm_dolly_layers1_bpe.pt --port 8000
    """
    require_packages("serve", "anyio", "prometheus_client", "starlette", "uvicorn", extra="serve")
    from newllm.serve import app
    from newllm.serve.protect import Access
    from newllm.serve.service import Limits
    from newllm.trained import TrainedModel

    models: dict[str, TrainedModel] = {}
    where = _writing_device(device)
    for file in files:
        model = TrainedModel.load(file, where, weights, architecture)
        same = [m for name, m in models.items()
                if name == model.path.stem or m.fingerprint == model.fingerprint]  # fmt: skip
        if same:
            raise UserError(f"{file}: the same name or model as {same[0].path}; serve one of them")
        models[model.path.stem] = model
    app.serve(
        models,
        port,
        Access(host, api_key, allow_hosts, allow_origins),
        Limits(requests=max_requests, queue=queue, sessions=max_sessions),
        Path(sessions_dir) if sessions_dir else None,
        _names(aliases, models),
        log_level,
    )


def _names(aliases: tuple[str, ...], models: dict[str, TrainedModel]) -> dict[str, str]:
    """What each alias means; raises UserError if that is no model, or one has the name."""
    meant: dict[str, str] = {}
    for alias in aliases:
        name, _, model = alias.partition("=")
        model = model or next(iter(models))
        if not name or name in models or name in meant:
            raise UserError(f"--alias {alias}: the name is taken or empty")
        if model not in models:
            raise UserError(f"--alias {alias}: {model} is not served{did_you_mean(model, models)}")
        meant[name] = model
    return meant


def _writing_device(device: str | None) -> str:
    """Where text is written: `auto` is the CPU, until a GPU has been measured to be quicker."""
    if device not in (None, "auto"):
        return device
    import torch

    if torch.cuda.is_available():
        click.echo(
            "Writing on the CPU, where a token is expected to take less time than on a GPU (not "
            "measured); --device cuda takes the GPU",
            err=True,
        )
    return "cpu"


COMMANDS = (generate, chat, serve)
