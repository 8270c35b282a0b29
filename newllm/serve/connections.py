"""Connections: silent ones are closed, so that no client can use them all up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from newllm.errors import UserError
from newllm.serve.service import Limits, Service

GRACE_SECONDS = 5
"""How long answers that are being written may go on when the server is asked to stop. They end then
as if their limit were reached, and have `LEAVE_SECONDS` to reach their clients.

Supervisors commonly kill after ten.
"""

LEAVE_SECONDS = 2

_YOUNG_SECONDS = 1.0
"""Where there are too many connections, one is closed that has been silent for so long; a younger
one only beyond twice the limit."""


class _Protocol(H11Protocol):
    """HTTP on one connection, which knows since when it waits for its client.

    It waits while no request is complete, head and body, and while an answer is not read. After
    `client_seconds` such a connection is closed; earlier where there are too many, the one that has
    been silent longest first. So idle, half-open and slow clients (slowloris) block no others.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.silent_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look()
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:  # would hold on to this, and to the last request's body
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look()

    def _look(self) -> None:
        """Note whether the client's turn has begun or ended; single bytes change nothing."""
        if not self._between_requests and not self.cycle.more_body and not self.flow.write_paused:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = self.loop.time()
            if self._timer is None:
                self._timer = self.loop.call_later(self.limits.client_seconds, self._look_again)

    def _look_again(self) -> None:
        """Close a connection on which no head of a request is complete in time.

        (Bodies and answers have deadlines of their own, with a message.)
        """
        self._timer = None
        if self.transport.is_closing() or self.silent_since is None:
            return
        left = self.silent_since + self.limits.client_seconds - self.loop.time()
        if left <= 0 and self._between_requests:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(max(left, 1.0), self._look_again)

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        others = [cast(_Protocol, other) for other in self.connections if other is not self]
        silent = [other for other in others if other.silent_since is not None]
        if not silent:
            return
        oldest = min(silent, key=lambda other: other.silent_since or 0)
        young = self.loop.time() - (oldest.silent_since or 0) < _YOUNG_SECONDS
        if not young or len(self.connections) > 2 * self.limits.connections:
            oldest.transport.abort()


def _is_a_fault(record: logging.LogRecord) -> bool:
    """False of an answer that the end of the server cut off: uvicorn shows where, as of a bug."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _Server(uvicorn.Server):
    """A second Ctrl-C cuts off what is being written; what was said until then is saved."""

    def __init__(self, config: uvicorn.Config, end_answers: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._end_answers = end_answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_late_answers())
        await super().shutdown(sockets)
        ending.cancel()
        if self.force_exit:  # uvicorn leaves out the end of the app
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()

    async def _end_late_answers(self) -> None:
        """Before uvicorn cancels their tasks, which makes errors of answers without text so far."""
        await asyncio.sleep(GRACE_SECONDS)
        await self._end_answers()


def make_server(app: Starlette, host: str, port: int, service: Service) -> uvicorn.Server:
    """uvicorn for the app of a service."""
    limits = service.limits
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=type("_LimitedProtocol", (_Protocol,), {"limits": limits}),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS + LEAVE_SECONDS,
        limit_concurrency=4 * limits.connections,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_a_fault)  # the same one is added once
    return _Server(config, service.end_answers)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there once the server runs; port 0 takes a free one.

    Raises:
        UserError: the port is taken, or the address none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol has to be given: only then does asyncio switch Nagle's algorithm off, with which
    # the second packet of every answer waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, TypeError) as error:  # TypeError: a name that cannot be encoded as one
        listener.close()
        reason = getattr(error, "strerror", None) or "no host name"
        raise UserError(f"--host {host} --port {port}: {reason}") from None
    return listener


def allow_connections(limits: Limits) -> int:
    """Have the system allow twice as many open connections as the limit, and so many files.

    Returns:
        the limit, or what the system allows of it.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * limits.connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return max(16, min(limits.connections, (soft - 256) // 2))
