"""The routes that any client of OpenAI's knows, and health, metrics, tokens, the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import newllm
from newllm.chat.dialogue import knows_system, prompt_ids
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError
from newllm.inference.decoder import START
from newllm.inference.engine import Job
from newllm.inference.sampling import Sampling
from newllm.serve.answers import OpenAIForm, Replies, respond, usage
from newllm.serve.page_files import PageFile, page_headers, read_page
from newllm.serve.protect import read_body
from newllm.serve.responses import ResponsesForm
from newllm.serve.schemas import (
    AnswerRequest,
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
    first_reason,
    invalid_body,
    shutting_down,
)
from newllm.serve.service import Reply, Served, Service

_MOST_ECHOED = 2**20
"""Log-probabilities of prompts of an answer: some 120 bytes each until they are sent."""

Body = TypeVar("Body", bound=BaseModel)


class Api:
    """The routes of a service, but for its sessions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page_headers = page_headers()

    def routes(self) -> list[Route]:
        """Method, path and handler."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            *(Route(f"/{name}", self._page(file)) for name, file in read_page().items()),
        ]

    async def health(self, request: Request) -> Response:
        """200 while requests are taken."""
        service = self._service
        if service.stopping:
            raise shutting_down()
        counts = {"active_answers": service.active, "waiting_answers": service.waiting}
        return JSONResponse({"status": "ok", **counts})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The models, each by all its names."""
        facts = [model_facts(self._service, name) for name in self._service.names]
        return JSONResponse({"object": "list", "data": facts})

    async def model(self, request: Request) -> Response:
        """One by its name."""
        name = request.path_params["name"]
        self._service.find(name)
        return JSONResponse(model_facts(self._service, name))

    async def chat(self, request: Request) -> Response:
        """Answers to a conversation, read on from its longest beginning whose state is kept."""
        asked = await body_as(ChatRequest, request, self._service)
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        served, replies = await self._answers(asked, asked.n, top)
        return await respond(request, replies, form(served, asked), asked.stream)

    async def responses(self, request: Request) -> Response:
        """The same in OpenAI's newer form."""
        asked = await body_as(ResponsesRequest, request, self._service)
        try:
            chat = asked.as_chat()
        except ValidationError as error:
            reason = first_reason(error).replace("messages", "input")
            raise ApiError(400, reason, "invalid_value", "input") from None
        _, replies = await self._answers(chat, 1, None)
        drawn = chat.sampling(Sampling())
        as_response = ResponsesForm(asked, drawn.temperature, drawn.top_p)
        return await respond(request, replies, as_response, asked.stream)

    async def _answers(
        self, asked: ChatRequest, count: int, top_logprobs: int | None
    ) -> tuple[Served, list[Reply]]:
        """Have answers to a conversation written."""
        service, served = self._service, self._service.find(asked.model)
        messages = asked.conversation
        if any(m["role"] == "system" for m in messages):
            check_system(served, "messages")
        start, known = served.cache.find(messages)
        ids = await asyncio.to_thread(prompt_ids, served.renderer, messages[known:], start)
        begun = asked.begun or ""
        if begun:
            ids += (await asyncio.to_thread(served.tokenizer.encode_batch, [begun]))[0]

        def finished(job: Job) -> None:
            if job.snapshot is not None:
                said = begun + job.answer.text
                answer: Conversation = [{"role": "assistant", "content": said}]
                served.cache.add(messages + answer, job.snapshot)

        replies = service.begin(
            served, start, ids, asked, samplings(asked, count), finished,
            top_logprobs=top_logprobs, trim=not begun,
        )  # fmt: skip
        service.metrics.tokens_cached.inc(start.tokens_read)
        return served, replies

    async def complete(self, request: Request) -> Response:
        """How texts go on; with `echo` and `logprobs`, also how likely they are."""
        service = self._service
        asked = await body_as(CompletionRequest, request, service)
        served = service.find(asked.model)
        prompts = asked.prompts
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        words = await asyncio.to_thread(served.tokenizer.encode_batch, texts) if texts else [
            known_ids(served, ids, "prompt") for ids in prompts if isinstance(ids, list)
        ]  # fmt: skip
        chooses = asked.written > asked.n
        if chooses:
            try:
                await asyncio.to_thread(lambda: served.model.reward)
            except UserError as error:
                raise ApiError(400, f"best_of: {error}", "unsupported_value", "best_of") from None
        service.check_room(served, len(prompts) * asked.written)
        scored = asked.echo and asked.logprobs is not None
        echoed_numbers = sum(map(len, words)) * asked.written * (1 + (asked.logprobs or 0))
        if scored and echoed_numbers > _MOST_ECHOED:
            raise ApiError(
                400,
                f"prompt: {echoed_numbers:,} log-probabilities to echo, at most {_MOST_ECHOED:,} a "
                "request: send fewer prompts at a time, or ask for fewer logprobs",
                "invalid_value",
                "prompt",
            )
        bos = served.tokenizer.bos
        replies: list[Reply] = []
        echoed: list[tuple[str, int]] = []
        for ids, prompt in zip(words, prompts, strict=True):
            begins = ids[:1] == [bos]
            try:
                replies += service.begin(
                    served, START, ids if begins else [bos, *ids], asked,
                    samplings(asked, asked.written), _nothing, top_logprobs=asked.logprobs,
                    trim=False, prompt_logprobs=scored,
                )  # fmt: skip
            except ApiError:
                for reply in replies:  # all of a request's answers, or none
                    reply.leave()
                raise
            text = prompt if isinstance(prompt, str) else served.tokenizer.decode(ids)
            echoed += [(text, 0 if begins else 1)] * asked.n
        more: dict[str, Any] = {"more": lambda: {"usage": usage(replies)}} if chooses else {}
        as_text = form(served, asked, chat=False, echoed=echoed if asked.echo else (), **more)
        choose = partial(best_of, served, asked.n, asked.written) if chooses else None
        return await respond(request, replies, as_text, asked.stream, choose)

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text, or of a conversation as an answer is written to it."""
        asked = await body_as(TokenizeRequest, request, self._service)
        served = self._service.find(asked.model)
        if (chat := asked.as_chat()) is not None:
            if any(m["role"] == "system" for m in chat.conversation):
                check_system(served, "messages")
            encode = partial(prompt_ids, served.renderer, chat.conversation, START)
            ids = await asyncio.to_thread(encode)
        else:
            text = asked.prompt if asked.content is None else asked.content
            ids = (await asyncio.to_thread(served.tokenizer.encode_batch, [text or ""]))[0]
            ids = [served.tokenizer.bos, *ids] if asked.add_special else ids
        return JSONResponse({"tokens": ids, "count": len(ids)})

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        asked = await body_as(DetokenizeRequest, request, self._service)
        served = self._service.find(asked.model)
        text = served.tokenizer.decode(known_ids(served, asked.tokens, "tokens"))
        return JSONResponse({"content": text, "prompt": text})

    def _page(self, file: PageFile) -> Callable[[Request], Any]:
        """A file of the browser page; 304 where the browser has it already."""

        async def page(request: Request) -> Response:
            headers = {**self._page_headers, "ETag": file.tag}
            if file.tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            return Response(file.content, media_type=file.kind, headers=headers)

        return page


async def best_of(served: Served, count: int, written: int, replies: Replies) -> list[int]:
    """Numbers of the answers that the reward head likes best, so many of each prompt's."""
    jobs = [reply.job for reply in replies]
    said = served.tokenizer.encode_batch([job.answer.text for job in jobs])
    end = served.tokenizer.end
    texts = [[*job.ids, *ids, end] for job, ids in zip(jobs, said, strict=True)]
    given = await asyncio.to_thread(served.model.rewards, texts)
    chosen: list[int] = []
    for first in range(0, len(given), written):
        ranked = sorted(range(first, first + written), key=lambda number: -given[number])
        chosen += ranked[:count]
    return chosen


def _nothing(job: Job) -> None:
    pass


def samplings(asked: Any, count: int) -> list[Sampling]:
    """How the tokens of each of a request's answers are drawn."""
    return [asked.sampling(Sampling(), number) for number in range(count)]


def known_ids(served: Served, ids: list[int], param: str) -> list[int]:
    """Ids of a request.

    Raises:
        ApiError: one that the model does not have.
    """
    most = served.tokenizer.vocab_size
    if any(token >= most for token in ids):
        message = f"{param}: this model's tokens are 0 to {most - 1}"
        raise ApiError(400, message, "invalid_value", param)
    return ids


def check_system(served: Served, param: str) -> None:
    """Raises ApiError if a model knows no system message."""
    if not knows_system(served.renderer):
        raise ApiError(400, "this model knows no system message", "unsupported_value", param)


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
        raise invalid_body(error, content) from None
    except UserError as error:
        raise ApiError(400, str(error), "invalid_value") from None


def form(
    served: Served, asked: AnswerRequest, chat: bool = True, usage: bool = False, **more: Any
) -> OpenAIForm:
    """The form of the response; `usage`: a stream ends with its usage in any case."""
    usage |= asked.stream_options is not None and asked.stream_options.include_usage
    name = getattr(asked, "model", served.name)
    return OpenAIForm(name, served.tokenizer, chat, usage, **more)


def model_facts(service: Service, name: str) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    served = service.find(name)
    model, settings = served.model, served.model.settings
    return {
        "id": name,
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
            "system_messages": knows_system(served.renderer),
            "state_bytes": served.state_bytes,
            "kv_cache_bytes_per_token": 2 * settings.num_layers * settings.embed_dim * 4,
            "max_prompt_tokens": service.limits.prompt_tokens,
            "max_answer_tokens": service.limits.answer_tokens,
        },
    }
