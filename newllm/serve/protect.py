"""What every request passes first: checks of key, Host and Origin, deadlines, the count by status.

A page from elsewhere that is open in the user's browser can reach a server on the loopback
address, also under a host name of its own (DNS rebinding). Hence the checks of Origin and Host.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from newllm.serve.schemas import ApiError
from newllm.serve.service import Metrics

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_GUARDED = ("/v1/", "/metrics")
_DRAINED = 16
"""A body too large is read on (and thrown away) up to so many times the limit.

A client that is still sending would see a broken connection in place of the refusal.
"""

log = logging.getLogger("newllm.serve")


class Guard:
    """Refuses requests that may not be made, and ends those whose client takes nothing in."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        api_key: str | None,
        loopback: bool,
        client_seconds: float,
    ) -> None:
        """Around an app.

        Args:
            app: what is guarded.
            metrics: requests are counted here.
            api_key: what `Authorization: Bearer ..` must say, or None for nothing.
            loopback: only answer under the names of this machine.
            client_seconds: how long a client may take for the next piece of an answer.
        """
        self._app, self._metrics, self._loopback = app, metrics, loopback
        self._key = None if api_key is None else _digest(f"Bearer {api_key}".encode())
        self._seconds = client_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_in_time(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            with anyio.fail_after(self._seconds):
                await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_in_time)
        except ApiError as error:
            await error.response()(scope, receive, send_in_time)
        except (ClientDisconnect, TimeoutError):
            log.info("a client left")
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._loopback and urlsplit(f"//{host}").hostname not in _LOOPBACK:
            raise ApiError(403, "this server answers as localhost alone", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "requests from pages of other sites are refused", "wrong_origin")
        if self._key is None or not scope["path"].startswith(_GUARDED):
            return
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(_digest(given), self._key):
            raise ApiError(
                401, "no or wrong API key: send Authorization: Bearer KEY", "invalid_api_key"
            )


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is larger than `most` bytes, or did not come within so many seconds.
    """
    body, size = bytearray(), 0
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    body += part
                elif size > _DRAINED * most:
                    break
    except TimeoutError:
        message = f"the request did not come within {seconds:g} seconds"
        raise ApiError(408, message, "too_slow") from None
    if size > most:
        raise ApiError(413, f"a request has at most {most:,} bytes", "request_too_large")
    return bytes(body)


def _digest(value: bytes) -> bytes:
    """Of one length, whatever the value's."""
    return hashlib.sha256(value).digest()
