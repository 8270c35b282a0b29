"""The parts put together: an ASGI app, and the process that serves it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import click
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from newllm.errors import Stopped, UserError
from newllm.inference.sampler import Sampling
from newllm.serve.api import Api, SessionRoutes
from newllm.serve.protect import Guard
from newllm.serve.schemas import ApiError
from newllm.serve.service import Limits, Service
from newllm.trained import TrainedModel

_GRACE_SECONDS = 10
"""How long answers that are being written may go on when the server is told to stop."""

log = logging.getLogger("newllm.serve")


def make_app(service: Service, api_key: str | None = None, loopback: bool = True) -> Starlette:
    """The app of a service, which runs while the app does.

    Args:
        service: not started yet.
        api_key: what clients must send as `Authorization: Bearer ..`, if anything.
        loopback: whether the server answers only under the names of this machine.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    guard = Middleware(
        Guard,
        metrics=service.metrics,
        api_key=api_key,
        loopback=loopback,
        client_seconds=service.limits.client_seconds,
    )
    return Starlette(
        routes=[*SessionRoutes(service).routes(), *Api(service).routes()],
        middleware=[guard],
        exception_handlers={ApiError: _refuse, HTTPException: _refuse_http, Exception: _fault},
        lifespan=lifespan,
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _refuse_http(request: Request, error: Exception) -> Response:
    """What starlette itself refuses: an unknown method."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, error.detail.lower()).response()


async def _fault(request: Request, error: Exception) -> Response:
    return ApiError(500, "a fault of the server; its log has more", "internal_error").response()


class _Protocol(H11Protocol):
    """Closes a connection on which no request is complete in time."""

    seconds = Limits.client_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.seconds, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def make_server(app: Starlette, host: str, port: int) -> uvicorn.Server:
    """uvicorn for an app; port 0 takes a free one."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        limit_concurrency=1024,
    )
    return uvicorn.Server(config)


def serve(
    model: TrainedModel,
    host: str,
    port: int,
    api_key: str | None,
    limits: Limits,
    sessions_dir: Path | None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        Stopped: when it was told to stop; everything is saved.
        UserError: the port is taken.
    """
    service = Service(model, model.path.stem, limits, sessions_dir)
    loopback = host in ("127.0.0.1", "::1", "localhost")
    server = make_server(make_app(service, api_key, loopback), host, port)
    sockets = [_bind(server.config)]
    model.chat(Sampling(temperature=0)).say("a", 2)  # compiles the step
    address = f"http://{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"
    click.echo(f"{service.name}: {model.size}, at {address} (API: {address}/v1)")
    if not loopback and api_key is None:
        click.echo("Anyone who can reach this machine can use it: consider --api-key", err=True)
    stopped_by = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number

    # uvicorn shuts down on these, then raises them again for the handlers set before it.
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    kept = f" Sessions in {sessions_dir}: {len(service.store)}." if sessions_dir else ""
    raise Stopped(128 + stopped_by, f"The server has stopped.{kept}")


def _bind(config: uvicorn.Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        raise UserError(f"--host {config.host} --port {config.port}: {error.strerror}") from None
    return listener
