"""Conversations that the server keeps: only the new turn is sent, only the state is stored."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue, knows_system, model_state_bytes
from newllm.errors import UserError
from newllm.inference.engine import Job
from newllm.inference.sampler import Sampling
from newllm.serve.answers import Form
from newllm.serve.api import body_as, form, respond
from newllm.serve.errors import ApiError
from newllm.serve.protect import read_body
from newllm.serve.schemas import SessionRequest, TurnRequest
from newllm.serve.service import Service
from newllm.serve.store import Session

_ONE = "/v1/sessions/{id}"


class SessionRoutes:
    """Create, continue, fork, undo, download, upload, delete."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Method, path and handler."""
        return [
            Route("/v1/sessions", self.list, methods=["GET"]),
            Route("/v1/sessions", self.create, methods=["POST"]),
            Route("/v1/sessions/file", self.upload, methods=["POST"]),
            Route(_ONE, self.show, methods=["GET"]),
            Route(_ONE, self.delete, methods=["DELETE"]),
            Route(f"{_ONE}/turns", self.turn, methods=["POST"]),
            Route(f"{_ONE}/fork", self.fork, methods=["POST"]),
            Route(f"{_ONE}/undo", self.undo, methods=["POST"]),
            Route(f"{_ONE}/file", self.download, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """All, the most recently used first."""
        sessions = [self._facts(session) for session in self._service.store.list()]
        return JSONResponse({"object": "list", "data": sessions})

    async def create(self, request: Request) -> Response:
        """A conversation that has not begun."""
        service = self._service
        asked = await body_as(SessionRequest, request, service)
        if asked.system is not None and not knows_system(service.model.renderer):
            raise ApiError(400, "this model knows no system message", "unsupported_value", "system")
        try:
            dialogue = Dialogue(asked.sampling(Sampling()), asked.system)
        except UserError as error:
            raise ApiError(400, str(error), "invalid_value", "system") from None
        return self._told(service.store.add(dialogue), 201)

    async def upload(self, request: Request) -> Response:
        """A conversation from a session file."""
        service = self._service
        limits, model = service.limits, service.model
        most = session_file.largest_file(model.model)
        content = await read_body(request, most, limits.client_seconds)
        try:
            dialogue = session_file.decode(
                content, model.model, model.renderer, "the session file", model.fingerprint
            )
        except UserError as error:
            raise ApiError(400, str(error), "invalid_session_file") from None
        return self._told(service.store.add(dialogue), 201)

    async def show(self, request: Request) -> Response:
        """One, with its transcript."""
        session, dialogue = self._find(request)
        return JSONResponse({**self._facts(session), "transcript": dialogue.transcript})

    async def delete(self, request: Request) -> Response:
        """Forget one."""
        name = request.path_params["id"]
        self._service.store.delete(name)
        return JSONResponse({"id": name, "object": "session.deleted", "deleted": True})

    async def turn(self, request: Request) -> Response:
        """Say something; the answer is told as a chat completion's."""
        service = self._service
        asked = await body_as(TurnRequest, request, service)
        session, dialogue = self._find(request, idle=True)
        start = dialogue.next_turn
        session.busy = True
        try:
            ids = await asyncio.to_thread(dialogue.prompt, service.model.renderer, asked.content)

            def finished(job: Job) -> None:
                session.busy = False
                if job.snapshot is not None:
                    dialogue.add_turn(asked.content, job.answer.text, job.snapshot, job.rng_state)
                    service.store.changed(session)

            reply = service.begin(
                start.snapshot,
                ids,
                asked,
                asked.sampling(dialogue.sampling),
                finished,
                rng_state=start.rng_state if asked.seed is None else None,
                pictures=asked.context,
            )
        except BaseException:
            session.busy = False
            raise
        told = form(service, asked)
        with_session = Form(
            told.model, told.tokenizer, usage=True, more=lambda: {"session": self._facts(session)}
        )
        return await respond(request, asked, reply, with_session)

    async def fork(self, request: Request) -> Response:
        """A second conversation that goes on from where this one is."""
        _, dialogue = self._find(request, idle=True)
        return self._told(self._service.store.add(dialogue.fork()), 201)

    async def undo(self, request: Request) -> Response:
        """Go back to before the last turn."""
        session, dialogue = self._find(request, idle=True)
        try:
            dialogue.undo()
        except UserError as error:
            raise ApiError(409, str(error), "nothing_to_undo") from None
        self._service.store.changed(session)
        return self._told(session)

    async def download(self, request: Request) -> Response:
        """One as a file of some kilobytes."""
        session, dialogue = self._find(request, idle=True)
        model = self._service.model
        content = session_file.encode(dialogue, model.model, model.renderer, model.fingerprint)
        headers = {"Content-Disposition": f'attachment; filename="{session.id[:8]}.session"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _find(self, request: Request, idle: bool = False) -> tuple[Session, Dialogue]:
        return self._service.store.get(request.path_params["id"], idle)

    def _told(self, session: Session, status: int = 200) -> Response:
        return JSONResponse(self._facts(session), status)

    def _facts(self, session: Session) -> dict[str, Any]:
        return {
            "id": session.id,
            "object": "session",
            "created": int(session.created),
            "last_used": int(session.last_used),
            "model": self._service.name,
            "busy": session.busy,
            "state_bytes": model_state_bytes(self._service.model.model),
            **session.facts,
        }
