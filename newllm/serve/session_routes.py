"""Conversations that the server keeps: only the new turn is sent, only the state is stored."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue
from newllm.errors import UserError
from newllm.inference.engine import Interim, Job
from newllm.inference.sampling import Sampling
from newllm.serve.answers import respond
from newllm.serve.api import body_as, check_system, form
from newllm.serve.protect import read_body
from newllm.serve.schemas import ApiError, SessionRequest, TurnRequest
from newllm.serve.service import Served, Service
from newllm.serve.store import Session

_SESSION = "/v1/sessions/{id}"
LISTED = 100
"""Sessions of one page of the list, where nothing else is asked for, and at most."""


class SessionRoutes:
    """The routes of a service's sessions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Method, path and handler."""
        return [
            Route("/v1/sessions", self.list, methods=["GET"]),
            Route("/v1/sessions", self.create, methods=["POST"]),
            Route("/v1/sessions/file", self.upload, methods=["POST"]),
            Route(_SESSION, self.show, methods=["GET"]),
            Route(_SESSION, self.delete, methods=["DELETE"]),
            Route(f"{_SESSION}/turns", self.turn, methods=["POST"]),
            Route(f"{_SESSION}/fork", self.fork, methods=["POST"]),
            Route(f"{_SESSION}/undo", self.undo, methods=["POST"]),
            Route(f"{_SESSION}/file", self.download, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """Those used last, a page at a time; `search` looks for words of a title."""
        asked = request.query_params
        unknown = sorted(set(asked) - {"limit", "after", "search"})
        if unknown:
            message = f"this list knows no parameter {unknown[0][:50]}"
            raise ApiError(400, message, "unknown_parameter", unknown[0][:50])
        limit = asked.get("limit", str(LISTED))
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= LISTED):
            raise ApiError(400, f"limit: 1 to {LISTED}", "invalid_value", "limit")
        store = self._service.store
        search = " ".join(asked.get("search", "").casefold().split())
        found, more = await store.page(int(limit), asked.get("after"), search)
        ids = [session.id for session in found] or [None]
        return JSONResponse(
            {
                "object": "list",
                "data": [self._facts(session) for session in found],
                "first_id": ids[0],
                "last_id": ids[-1],
                "has_more": more,
                "total": len(store),
            }
        )

    async def create(self, request: Request) -> Response:
        """A conversation that has not begun."""
        service = self._service
        asked = await body_as(SessionRequest, request, service)
        served = service.find(asked.model)
        if asked.system is not None:
            check_system(served, "system")
        try:
            dialogue = Dialogue(asked.sampling(Sampling()), asked.system)
        except UserError as error:
            raise ApiError(400, str(error), "invalid_value", "system") from None
        return self._described(service.store.add(served.name, dialogue), 201)

    async def upload(self, request: Request) -> Response:
        """A conversation from a session file, with the model that it is with."""
        service = self._service
        models = service.models.values()
        most = max(session_file.largest_file(served.model.model) for served in models)
        content = await read_body(request, most, service.limits.client_seconds)
        try:
            name = session_file.model_of(content, "the session file")
            served = next((s for s in models if s.fingerprint == name), service.default)
            dialogue = session_file.decode(
                content, served.model.model, served.renderer, "the session file", served.fingerprint
            )
        except UserError as error:
            raise ApiError(400, str(error), "invalid_session_file") from None
        return self._described(service.store.add(served.name, dialogue), 201)

    async def show(self, request: Request) -> Response:
        """One, with its transcript."""
        session, dialogue = self._find(request)
        return JSONResponse({**self._facts(session), "transcript": dialogue.transcript})

    async def delete(self, request: Request) -> Response:
        """Forget one."""
        name = request.path_params["id"]
        await self._service.store.delete(name)
        return JSONResponse({"id": name, "object": "session.deleted", "deleted": True})

    async def turn(self, request: Request) -> Response:
        """Say something; the answer has the form of a chat completion."""
        service, store = self._service, self._service.store
        asked = await body_as(TurnRequest, request, service)
        session, dialogue = self._find(request, idle=True)
        if asked.revision not in (None, session.facts["revision"]):
            message = "this session is not as it was at this revision: it went on elsewhere"
            raise ApiError(409, message, "session_changed", "revision")
        served, start = self._served(session), dialogue.next_turn
        session.busy = True
        try:
            ids = await asyncio.to_thread(dialogue.prompt, served.renderer, asked.content)

            def interim(so_far: Interim) -> None:
                copy = dialogue.copy()
                copy.add_turn(asked.content, so_far.text, so_far.snapshot, so_far.rng_state)
                store.on_its_way(session, copy)

            def finished(job: Job) -> None:
                session.busy = False
                if job.snapshot is not None:
                    dialogue.add_turn(asked.content, job.answer.text, job.snapshot, job.rng_state)
                store.changed(session)

            replies = service.begin(
                served,
                start.snapshot,
                ids,
                asked,
                [asked.sampling(dialogue.sampling)],
                finished,
                rng_state=start.rng_state if asked.seed is None else None,
                pictures=asked.context,
                interim=interim,
            )
        except UserError as error:
            session.busy = False
            raise ApiError(400, str(error), "invalid_value", "content") from None
        except BaseException:
            session.busy = False
            raise
        read_here = max(0, start.snapshot.tokens_read - session.known_tokens)
        service.metrics.tokens_cached.inc(read_here)
        chat = form(served, asked, usage=True, more=lambda: {"session": self._facts(session)})
        return await respond(request, replies, chat, asked.stream)

    async def fork(self, request: Request) -> Response:
        """A second conversation that goes on from where this one is."""
        session, dialogue = self._find(request, idle=True)
        return self._described(self._service.store.add(session.model, dialogue.fork()), 201)

    async def undo(self, request: Request) -> Response:
        """Go back to before the last turn."""
        session, dialogue = self._find(request, idle=True)
        try:
            dialogue.undo()
        except UserError as error:
            raise ApiError(409, str(error), "nothing_to_undo") from None
        self._service.store.changed(session)
        return self._described(session)

    async def download(self, request: Request) -> Response:
        """One as a file of some kilobytes."""
        session, dialogue = self._find(request, idle=True)
        served = self._served(session)
        content = session_file.encode(
            dialogue, served.model.model, served.renderer, served.fingerprint
        )
        headers = {"Content-Disposition": f'attachment; filename="{session.id[:8]}.session"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _find(self, request: Request, idle: bool = False) -> tuple[Session, Dialogue]:
        return self._service.store.get(request.path_params["id"], idle)

    def _served(self, session: Session) -> Served:
        return self._service.models[session.model]

    def _described(self, session: Session, status: int = 200) -> Response:
        return JSONResponse(self._facts(session), status)

    def _facts(self, session: Session) -> dict[str, Any]:
        return {
            "id": session.id,
            "object": "session",
            "created": int(session.created),
            "last_used": int(session.last_used),
            "model": session.model,
            "busy": session.busy,
            "state_bytes": self._served(session).state_bytes,
            **session.facts,
        }
