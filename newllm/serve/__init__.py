"""An HTTP server for one model: OpenAI's interface, and conversations kept as their state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from newllm.errors import require_packages

if TYPE_CHECKING:
    from newllm.model.quantize import WeightFormat

PACKAGES = ("anyio", "prometheus_client", "starlette", "uvicorn")


def serve_checkpoint(
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
    """Serve a checkpoint until SIGINT or SIGTERM.

    Raises:
        Stopped: when it was told to stop; everything is saved.
        UserError: no such checkpoint, the port is taken, the server's packages are missing.
    """
    require_packages("serve", *PACKAGES, extra="serve")
    from newllm.serve.app import serve
    from newllm.serve.service import Limits
    from newllm.trained import TrainedModel

    model = TrainedModel.load(file, device or "auto", weights, architecture)
    limits = Limits(requests=max_requests, sessions=max_sessions)
    serve(model, host, port, api_key, limits, Path(sessions_dir) if sessions_dir else None)
