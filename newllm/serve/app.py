"""The parts put together: an ASGI app, and the process that serves it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from newllm.device import trim_freed_memory
from newllm.errors import Stopped
from newllm.inference.sampling import Sampling
from newllm.serve.api import Api
from newllm.serve.connections import allow_connections, bind, make_server
from newllm.serve.openapi import document
from newllm.serve.protect import Access, Guard
from newllm.serve.schemas import ApiError
from newllm.serve.service import Limits, Service
from newllm.serve.session_routes import SessionRoutes
from newllm.trained import TrainedModel

_TRIM_SECONDS = 30.0
"""Between two times that freed memory is given to the system: a few milliseconds of work."""


def make_app(service: Service, access: Access | None = None) -> Starlette:
    """The app of a service, which runs while the app does.

    Args:
        service: not started yet.
        access: the clients that are served; by default those of this machine alone.
    """
    access = access or Access()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        trimming = asyncio.create_task(_trim_memory())
        yield
        trimming.cancel()
        await service.stop()

    described = document(access.api_key is not None)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    guard = Middleware(
        Guard, metrics=service.metrics, access=access, client_seconds=service.limits.client_seconds
    )
    others = Middleware(
        CORSMiddleware, allow_origins=access.sites, allow_methods=["*"],
        allow_headers=["*"], expose_headers=["Retry-After", "Content-Disposition"],
        allow_private_network=True,
    )  # fmt: skip
    app = Starlette(
        routes=[
            *SessionRoutes(service).routes(), *Api(service).routes(),
            Route("/openapi.json", openapi),
        ],
        middleware=[others, guard] if access.origins else [guard],
        exception_handlers={ApiError: _refuse, HTTPException: _refuse_http, Exception: _fault},
        lifespan=lifespan,
    )  # fmt: skip
    app.router.redirect_slashes = False
    return app


async def _trim_memory() -> None:
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        await asyncio.to_thread(trim_freed_memory)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _refuse_http(request: Request, error: Exception) -> Response:
    """What starlette itself refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        known = {route.path for route in request.app.routes}
        whole = path.rstrip("/")
        hint = "see /docs for what there is; OpenAI's end points are below /v1"
        if whole in known:
            hint = f"did you mean {whole}, without the slash at its end?"
        elif f"/v1{whole}" in known:
            hint = f"did you mean /v1{whole}? The base URL ends in /v1"
        return ApiError(404, f"there is nothing here; {hint}", "not_found").response()
    exact = [r for r in request.app.routes if r.path == path]
    routes = exact or [r for r in request.app.routes if r.path_regex.match(path)]
    allowed = ", ".join(sorted({method for route in routes for method in route.methods}))
    message = f"{request.method} is no method of this end point ({allowed})"
    return ApiError(405, message, "method_not_allowed", headers={"Allow": allowed}).response()


async def _fault(request: Request, error: Exception) -> Response:
    return ApiError(500, "a fault of the server; its log has more", "internal_error").response()


def serve(
    models: Mapping[str, TrainedModel],
    port: int,
    access: Access,
    limits: Limits,
    sessions_dir: Path | None = None,
    aliases: Mapping[str, str] | None = None,
    log_level: str = "warning",
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        models: by name; the first is meant where a request names none.
        port: 0 takes a free one.
        access: where it listens, and which clients it serves.
        limits: what it does at most.
        sessions_dir: where conversations are kept.
        aliases: further names of models.
        log_level: of the log on standard error; from `info` on it has a line a request.

    Raises:
        Stopped: on such a signal; everything is saved that can be.
        UserError: the port is taken, or the folder cannot be written.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("newllm").setLevel(log_level.upper())
    limits = replace(limits, connections=allow_connections(limits))
    service = Service(models, limits, sessions_dir, aliases)
    server = make_server(make_app(service, access), access.host, port, service)
    sockets = [bind(access.host, port)]
    for model in models.values():
        model.chat(Sampling(temperature=0)).say("a", 2)  # compiles the step
    sockets[0].listen(server.config.backlog)  # before the address is printed
    host = f"[{access.host}]" if ":" in access.host else access.host
    address = f"http://{host}:{sockets[0].getsockname()[1]}"
    for name, model in models.items():
        click.echo(f"{name}: {model.size}, at {address} (API: {address}/v1)")
    if not access.loopback and access.api_key is None:
        click.echo("Anyone who can reach this machine can use it: consider --api-key", err=True)
    stopped_by = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number
        server.should_exit = True

    # uvicorn shuts down on the first two, then raises them again for the handlers set before it.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, note) for n in numbers}
    gc.freeze()  # else what stays anyway is searched for garbage, an eighth of a second at a time
    try:
        server.run(sockets)
    finally:
        gc.unfreeze()
        service.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    raise Stopped(128 + stopped_by, f"The server has stopped.{_saved(service, sessions_dir)}")


def _saved(service: Service, sessions_dir: Path | None) -> str:
    if sessions_dir is None:
        return ""
    store = service.store
    lost = f"; {store.unsaved} could not be written ({store.failure})" if store.unsaved else ""
    return f" Sessions in {sessions_dir}: {len(store) - store.unsaved}{lost}."
