"""OpenAI's end points, health, metrics, and the page."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import newllm
from newllm.chat.dialogue import knows_system, model_state_bytes, prompt_ids
from newllm.datasets.conversations import Conversation
from newllm.inference.decoder import START
from newllm.inference.engine import Job
from newllm.inference.sampler import Sampling
from newllm.serve.answers import AnswerStream, Form, whole_answer
from newllm.serve.browser import BrowserPage
from newllm.serve.errors import ApiError, invalid_body
from newllm.serve.protect import read_body
from newllm.serve.schemas import AnswerRequest, ChatRequest, CompletionRequest
from newllm.serve.service import Reply, Service

Body = TypeVar("Body", bound=BaseModel)


class Api:
    """The routes that any client of OpenAI's knows."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page = BrowserPage()

    def routes(self) -> list[Route]:
        """Method, path and handler."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/{name:path}", self._page.show),
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
        """The answer to a conversation; what is known of it is not read again."""
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
        reply = service.begin(
            START,
            [tokenizer.bos, *words[0]],
            asked,
            asked.sampling(Sampling()),
            lambda job: None,
            top_logprobs=asked.logprobs,
            trim=False,
        )
        return await respond(request, asked, reply, form(service, asked, chat=False))


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
    """How an answer is told."""
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
