"""Commands that write text: generate, chat, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from newllm.cli.help_pages import Command
from newllm.cli.options import (
    architecture_option,
    file_argument,
    sampling_options,
    serving_options,
    setting_options,
    weights_option,
)
from newllm.config import option_name
from newllm.errors import UserError, require_packages

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat


@click.command(cls=Command)
@file_argument
@click.option("--prompt", required=True, help="What is said to the model.")
@sampling_options
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
    **sampling: Any,
) -> None:
    """Print the answer of checkpoint FILE to a prompt.

    Example: newllm generate best.pt --prompt "What is the capital of France?"
    """
    from newllm.inference.sampler import Sampling
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights, architecture)
    for piece in model.generate(prompt, Sampling(**sampling), max_new_tokens, min_new_tokens):
        click.echo(piece, nl=False)
    click.echo()


@click.command(cls=Command)
@file_argument
@click.option("--system", default=None, help="What the model is told before the conversation.")
@click.option("--load", metavar="SESSION", help="Go on with a saved conversation, as it was drawn.")
@sampling_options
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
    **sampling: Any,
) -> None:
    """Talk to checkpoint FILE; the conversation is held in its fixed-size state.

    Example: newllm chat checkpoints/best_new_llm_dolly_layers1_bpe.pt --temperature 0.5
    """
    from newllm.chat.terminal import converse
    from newllm.inference.sampler import Sampling
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights, architecture)
    given = click.get_current_context().get_parameter_source
    for name in ("system", *sampling):
        if load and given(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"{option_name(name)}: --load goes on as that conversation was begun")
    session = model.resume_chat(load) if load else model.chat(Sampling(**sampling), system)
    converse(session, f"{file}: {model.size}", max_new_tokens, min_new_tokens)


@click.command(cls=Command)
@file_argument
@serving_options
@setting_options("device")
@weights_option
@architecture_option
def serve(
    file: str,
    host: str,
    port: int,
    api_key: str | None,
    sessions_dir: str | None,
    max_requests: int,
    max_sessions: int,
    device: str | None,
    weights: WeightFormat,
    architecture: str | None,
) -> None:
    """Serve checkpoint FILE over HTTP: OpenAI's API, and conversations kept as their state.

    Example: newllm serve checkpoints/best_new_llm_dolly_layers1_bpe.pt --port 8000
    """
    require_packages("serve", "anyio", "prometheus_client", "starlette", "uvicorn", extra="serve")
    from newllm.serve import app
    from newllm.serve.service import Limits
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights, architecture)
    limits = Limits(requests=max_requests, sessions=max_sessions)
    app.serve(model, host, port, api_key, limits, Path(sessions_dir) if sessions_dir else None)


COMMANDS = (generate, chat, serve)
