"""What every request passes first: checks of key, Host and Origin, deadlines, count and log.

A page from elsewhere that is open in the user's browser can reach a server on this machine or in
its network, also under a host name of its own (DNS rebinding). Hence the checks of Origin and Host.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import socket
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from newllm.serve.schemas import ApiError
from newllm.serve.service import Metrics

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_GUARDED = ("/v1/", "/metrics", "/tokenize", "/detokenize")
_DRAINED = 16
"""A body too large is read on (and thrown away) up to so many times the limit.

A client that is still sending would see a broken connection in place of the refusal.
"""

log = logging.getLogger("newllm.serve")
access_log = logging.getLogger("newllm.access")


@dataclass(frozen=True)
class Access:
    """The clients that a server answers."""

    host: str = "127.0.0.1"
    """The address that it listens on."""
    api_key: str | None = None
    """What clients must send as `Authorization: Bearer ..`, if anything."""
    hosts: Collection[str] = ()
    """Further names under which it answers; `*`: all."""
    origins: Collection[str] = ()
    """Pages of other sites that may ask it, `https://name`; `*`: all."""

    @property
    def sites(self) -> list[str]:
        """Those pages' origins as browsers send them: in lower case, no slash behind."""
        return [origin.lower().rstrip("/") for origin in self.origins]

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    def answers_as(self, name: str) -> bool:
        """Whether it answers under this host name.

        A page that rebinds a name of its own to our address does not know the key. Without one, a
        name must be ours: an address, or what this machine is called.
        """
        if name in LOOPBACK or name in map(str.lower, self.hosts) or "*" in self.hosts:
            return True
        if self.loopback:
            return False
        return self.api_key is not None or _is_address(name) or name in _own_names()


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], f"{name}.local"}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Refuses requests that may not be made, and ends those whose client takes nothing in."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, access: Access, client_seconds: float
    ) -> None:
        """Around an app.

        Args:
            app: what is guarded.
            metrics: requests are counted here.
            access: the clients that are answered.
            client_seconds: how long a client may take for the next piece of an answer.
        """
        self._app, self._metrics, self._access = app, metrics, access
        self._key = None if access.api_key is None else _digest(access.api_key.encode())
        self._seconds = client_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started, name = 0, time.perf_counter(), f"req_{uuid.uuid4().hex}"

        async def send_in_time(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name  # as OpenAI's clients show it
            with anyio.fail_after(self._seconds):
                await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_in_time)
        except ApiError as error:
            await error.response()(scope, receive, send_in_time)
        except (ClientDisconnect, TimeoutError):
            log.debug("a client left")
        finally:
            path = getattr(scope.get("route"), "path", None)
            self._metrics.requests.labels(path or "other", str(status)).inc()
            if access_log.isEnabledFor(logging.INFO):
                client = (scope.get("client") or ("-",))[0]
                took = (time.perf_counter() - started) * 1000
                # The path as it was asked for: no query, no header, nothing of a body.
                asked = quote(scope["path"][:100])
                facts = client, scope["method"], asked, status, took, name
                access_log.info("%s %s %s %d %.1f ms %s", *facts)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            raise ApiError(  # a proxy may read it otherwise: request smuggling
                400, "Content-Length and Transfer-Encoding contradict each other",
                "bad_request", headers={"Connection": "close"},
            )  # fmt: skip
        host = headers.get("host")
        if host is not None and not self._access.answers_as(_host_name(host)):
            message = "this server does not answer under this host name; see --allow-host"
            raise ApiError(403, message, "wrong_host")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin, host):
            message = "requests from pages of other sites are refused; see --allow-origin"
            raise ApiError(403, message, "wrong_origin")
        if self._key is None or not scope["path"].startswith(_GUARDED):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._key):
            raise ApiError(
                401, "no or wrong API key: send Authorization: Bearer KEY", "invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="newllm"'},
            )  # fmt: skip

    def _may_ask(self, origin: str, host: str | None) -> bool:
        if origin in self._access.sites or "*" in self._access.sites:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:
            raise ApiError(400, "the Origin header is malformed", "bad_request") from None


def _host_name(host: str) -> str:
    """The name in a Host header, in lower case.

    Raises:
        ApiError: malformed.
    """
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or parts.username is not None or (parts.port or 1) < 0:
            raise ValueError(host)
    except ValueError:
        raise ApiError(400, "the Host header is malformed", "bad_request") from None
    return parts.hostname or ""


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
