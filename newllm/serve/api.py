"""The routes: OpenAI's end points, the conversations kept here, health, metrics, and the page."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import newllm
from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue, knows_system, model_state_bytes, prompt_ids
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError
from newllm.inference.decoder import START
from newllm.inference.engine import Job
from newllm.inference.sampler import Sampling
from newllm.serve.answers import AnswerStream, Form, whole_answer
from newllm.serve.page_files import page_headers, read_page
from newllm.serve.protect import read_body
from newllm.serve.schemas import (
    AnswerRequest,
    ApiError,
    ChatRequest,
    CompletionRequest,
    SessionRequest,
    TurnRequest,
    invalid_body,
)
from newllm.serve.service import Reply, Service
from newllm.serve.store import Session

_SESSION = "/v1/sessions/{id}"

Body = TypeVar("Body", bound=BaseModel)


class Api:
    """The routes that any client of OpenAI's knows."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page, self._page_headers = read_page(), page_headers()

    def routes(self) -> list[Route]:
        """Method, path and handler."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/{name:path}", self.page),
        ]

    async def health(self, request: Request) -> Response:
        """200 while requests are taken."""
        if self._service.stopping:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        return JSONResponse({"status": "ok", "active_answers": self._service.engine.jobs})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [model_facts(self._service)]})

    async def model(self, request: Request) -> Response:
        """The same by its name."""
        check_model(self._service, request.path_params["name"])
        return JSONResponse(model_facts(self._service))

    async def chat(self, request: Request) -> Response:
        """The answer to a conversation, read on from its longest beginning whose state is kept."""
        service = self._service
        asked = await body_as(ChatRequest, request, service)
        check_model(service, asked.model)
        messages = asked.conversation
        renderer = service.model.renderer
        if any(m["role"] == "system" for m in messages) and not knows_system(renderer):
            raise ApiError(
                400, "this model knows no system message", "unsupported_value", "messages"
            )
        start, known = service.cache.find(messages)
        ids = await asyncio.to_thread(prompt_ids, renderer, messages[known:], start)

        def finished(job: Job) -> None:
            if job.snapshot is not None:
                answer: Conversation = [{"role": "assistant", "content": job.answer.text}]
                service.cache.add(messages + answer, job.snapshot)

        top = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = asked.sampling(Sampling())
        reply = service.begin(start, ids, asked, sampling, finished, top_logprobs=top)
        return await respond(request, asked, reply, form(service, asked))

    async def complete(self, request: Request) -> Response:
        """How a text goes on."""
        service = self._service
        asked = await body_as(CompletionRequest, request, service)
        check_model(service, asked.model)
        tokenizer = service.model.tokenizer
        words = await asyncio.to_thread(tokenizer.encode_batch, [asked.text])
        ids, sampling = [tokenizer.bos, *words[0]], asked.sampling(Sampling())
        reply = service.begin(
            START, ids, asked, sampling, lambda job: None, top_logprobs=asked.logprobs, trim=False
        )
        return await respond(request, asked, reply, form(service, asked, chat=False))

    async def page(self, request: Request) -> Response:
        """A file of the browser page; a browser that has it already is told so."""
        file = self._page.get(request.path_params["name"])
        if file is None:
            raise ApiError(404, "there is nothing here; see docs/SERVING.md", "not_found")
        headers = {**self._page_headers, "ETag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)


class SessionRoutes:
    """Conversations that the server keeps: only the new turn is sent, only the state is stored."""

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
        told = Form(
            service.name,
            service.model.tokenizer,
            usage=True,
            more=lambda: {"session": self._facts(session)},
        )
        return await respond(request, asked, reply, told)

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


async def body_as(schema: type[Body], request: Request, service: Service) -> Body:
    """The body of a request, read and validated.

    Raises:
        ApiError: too large, too slow, or not what the schema says.
    """
    limits = service.limits
    content = await read_body(request, limits.body_bytes, limits.client_seconds)
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        raise invalid_body(error) from None


async def respond(request: Request, asked: AnswerRequest, reply: Reply, form: Form) -> Response:
    """The answer, whole or as a stream."""
    if asked.stream:
        return AnswerStream(reply, form)
    return await whole_answer(request, reply, form)


def form(service: Service, asked: AnswerRequest, chat: bool = True) -> Form:
    """The form of the response."""
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Form(service.name, service.model.tokenizer, chat, usage)


def check_model(service: Service, name: str) -> None:
    """Raises ApiError if it is not the one that is served."""
    if name != service.name:
        raise ApiError(
            404, f"there is no model {name[:100]!r}; this server has {service.name}",
            "model_not_found", "model",
        )  # fmt: skip


def model_facts(service: Service) -> dict[str, Any]:
    """The model as `/v1/models` lists it."""
    model, settings = service.model, service.model.settings
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "newllm",
        "newllm": {
            "version": newllm.__version__,
            "fingerprint": model.fingerprint,
            "architecture": settings.architecture,
            "parameters": model.parameters,
            "counts_bytes": model.counts_bytes,
            "num_layers": settings.num_layers,
            "context_dim": settings.context_dim,
            "dataset": settings.dataset,
            "tokenizer": model.tokenizer.kind,
            "system_messages": knows_system(model.renderer),
            "state_bytes": model_state_bytes(model.model),
            "kv_cache_bytes_per_token": 2 * settings.num_layers * settings.embed_dim * 4,
            "max_prompt_tokens": service.limits.prompt_tokens,
            "max_answer_tokens": service.limits.answer_tokens,
        },
    }
