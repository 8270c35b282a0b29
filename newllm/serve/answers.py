"""Answers in OpenAI's forms: whole, or as a stream of server-sent events."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from newllm.data.tokenizers import Tokenizer
from newllm.inference.engine import Chosen, Piece
from newllm.serve.schemas import ApiError
from newllm.serve.service import Reply

_GIVEN_UP = "the answer was given up: the model's scores are not finite (see the server's log)"


@dataclass(frozen=True)
class Form:
    """The form of a response."""

    model: str
    tokenizer: Tokenizer
    chat: bool = True
    """As a chat completion; else as a text completion."""
    usage: bool = False
    """Whether a stream ends with the usage."""
    more: Callable[[], dict[str, Any]] = dict
    """What the last message says besides, when the answer has ended."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def head(self, reply: Reply, chunk: bool) -> dict[str, Any]:
        """What every message begins with."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": reply.created, "model": self.model}

    def choice(self, reply: Reply, pieces: list[Piece], whole: bool) -> dict[str, Any]:
        """The text of some pieces, or of all."""
        text = reply.job.answer.text if whole else "".join(piece.text for piece in pieces)
        reason = _reason(reply) if whole else None
        chosen = [piece.chosen for piece in pieces if piece.chosen is not None]
        logprobs = None
        if reply.job.top_logprobs is not None:
            logprobs = self._chat_logprobs(chosen) if self.chat else self._text_logprobs(chosen)
        rest = {"index": 0, "logprobs": logprobs, "finish_reason": reason}
        if not self.chat:
            return {"text": text, **rest}
        if whole:
            return {"message": {"role": "assistant", "content": text}, **rest}
        return {"delta": {"content": text}, **rest}

    def _chat_logprobs(self, tokens: list[Chosen]) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            name = self._name(token)
            return {"token": name, "logprob": logprob, "bytes": list(self.tokenizer.piece(token))}

        content = [
            {**one(t.token, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]}
            for t in tokens
        ]
        return {"content": content, "refusal": None}

    def _text_logprobs(self, tokens: list[Chosen]) -> dict[str, Any]:
        return {
            "tokens": [self._name(t.token) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._name(token): p for token, p in t.top} for t in tokens],
            "text_offset": None,
        }

    def _name(self, token: int) -> str:
        special = self.tokenizer.special_name(token)
        return special or self.tokenizer.piece(token).decode(errors="replace")


def usage(reply: Reply) -> dict[str, Any]:
    """Tokens of the whole conversation, and how many of them did not have to be read."""
    job = reply.job
    known, total = job.start.tokens_read, job.start.tokens_read + len(job.ids)
    return {
        "prompt_tokens": total,
        "completion_tokens": job.written,
        "total_tokens": total + job.written,
        "prompt_tokens_details": {"cached_tokens": known},
    }


async def whole_answer(request: Request, reply: Reply, form: Form) -> Response:
    """Wait for the answer, unless the client leaves.

    Raises:
        ApiError: the answer was given up.
    """
    pieces: list[Piece] = []

    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            reply.leave()

        tasks.start_soon(watch)
        async for new in reply.pieces():
            pieces += new
        tasks.cancel_scope.cancel()
    if reply.job.reason == "error":
        raise ApiError(500, _GIVEN_UP, "not_finite")
    body = form.head(reply, chunk=False)
    body["choices"] = [form.choice(reply, pieces, whole=True)]
    return JSONResponse({**body, "usage": usage(reply), **form.more()})


class AnswerStream(StreamingResponse):
    """The answer as server-sent events. A client that leaves ends it."""

    def __init__(self, reply: Reply, form: Form) -> None:
        self._reply = reply
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(reply, form), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.leave()


async def _events(reply: Reply, form: Form) -> AsyncIterator[bytes]:
    head = form.head(reply, chunk=True)
    if form.chat:
        first = {"role": "assistant", "content": ""}
        yield _event({**head, "choices": [_delta(first, None)]})
    async for pieces in reply.pieces():
        body = {**head, "choices": [form.choice(reply, pieces, whole=False)]}
        pictures = [piece.picture for piece in pieces if piece.picture is not None]
        if pictures:
            body |= {**asdict(pictures[-1]), "usage": usage(reply)}
            body["pieces"] = [[piece.text, piece.recalled] for piece in pieces]
        yield _event(body)
    if reply.job.reason == "error":
        yield _event(ApiError(500, _GIVEN_UP, "not_finite").to_dict())
        return
    last = _delta({}, _reason(reply)) if form.chat else {
        "text": "", "index": 0, "logprobs": None, "finish_reason": _reason(reply),
    }  # fmt: skip
    yield _event({**head, "choices": [last], **form.more()})
    if form.usage:
        yield _event({**head, "choices": [], "usage": usage(reply)})
    yield b"data: [DONE]\n\n"


def _delta(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _reason(reply: Reply) -> str | None:
    """Why it ended, in OpenAI's words: a server that stops cuts answers as a limit does."""
    return "length" if reply.job.reason == "cancelled" else reply.job.reason


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
