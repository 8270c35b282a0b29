"""Answers in OpenAI's forms: whole, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from newllm.data.tokenizers import Tokenizer
from newllm.inference.engine import Piece, TokenLogprob
from newllm.serve.service import Reply

Replies = Sequence[Reply]
"""Of one request: of each prompt, all answers, one prompt after the other."""

News = tuple[int, list[Piece]]
"""Number of an answer, and what was written of it since the last time; at its end, nothing."""


class Form(Protocol):
    """The form in which answers are sent."""

    def whole(self, replies: Replies, pieces: list[list[Piece]]) -> dict[str, Any]:
        """The body of the response, when all answers have ended."""
        ...

    def events(self, replies: Replies) -> AsyncIterator[bytes]:
        """The same as server-sent events, while they are written."""
        ...


@dataclass(frozen=True)
class OpenAIForm:
    """A chat completion, or a text completion."""

    model: str
    tokenizer: Tokenizer
    chat: bool = True
    """As a chat completion; else as a text completion."""
    usage: bool = False
    """Whether a stream ends with the usage."""
    more: Callable[[], dict[str, Any]] = dict
    """What the last message says besides, when the answer has ended."""
    echoed: Sequence[tuple[str, int]] = ()
    """Of each answer, if its prompt is echoed: the prompt's text, and how many of the tokens that
    were read are not (the one that begins every text)."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, replies: Replies, pieces: list[list[Piece]]) -> dict[str, Any]:
        body = self._head(replies, chunk=False)
        body["choices"] = [
            self._choice(number, reply, pieces[number], whole=True)
            for number, reply in enumerate(replies)
        ]
        return {**body, "usage": usage(replies), **self.more()}

    async def events(self, replies: Replies) -> AsyncIterator[bytes]:
        head = self._head(replies, chunk=True)
        if self.chat:
            first = {"role": "assistant", "content": ""}
            for number in range(len(replies)):
                yield _event({**head, "choices": [_delta(number, first, None)]})
        begun: set[int] = set()
        still_open = len(replies)
        async for number, pieces in news(replies):
            reply, first = replies[number], number not in begun
            begun.add(number)
            if pieces or (first and self.echoed):
                choice = self._choice(number, reply, pieces, whole=False, first=first)
                body = {**head, "choices": [choice]}
                pictures = [piece.picture for piece in pieces if piece.picture is not None]
                if pictures:
                    body |= {**asdict(pictures[-1]), "usage": usage(replies)}
                    body["pieces"] = [[piece.text, piece.recalled] for piece in pieces]
                yield _event(body)
            if pieces:
                continue
            if reply.failure is not None:
                yield _event(reply.failure.to_dict())
                return
            still_open -= 1
            last = _delta(number, {}, why_ended(reply)) if self.chat else {
                "text": "", "index": number, "logprobs": None, "finish_reason": why_ended(reply),
            }  # fmt: skip
            yield _event({**head, "choices": [last], **({} if still_open else self.more())})
        if self.usage:
            yield _event({**head, "choices": [], "usage": usage(replies)})
        yield b"data: [DONE]\n\n"

    def _head(self, replies: Replies, chunk: bool) -> dict[str, Any]:
        """What every message begins with."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": replies[0].created, "model": self.model}

    def _choice(
        self, number: int, reply: Reply, pieces: list[Piece], whole: bool, first: bool = True
    ) -> dict[str, Any]:
        """The text of some pieces, or of all; in the first behind the prompt, if that is echoed."""
        text = reply.job.answer.text if whole else "".join(piece.text for piece in pieces)
        prompt, unechoed = self.echoed[number] if self.echoed and first else ("", None)
        reason = why_ended(reply) if whole else None
        chosen = [piece.chosen for piece in pieces if piece.chosen is not None]
        logprobs = None
        if reply.job.top_logprobs is not None and self.chat:
            ended = {id(p.chosen) for p in pieces if p.ended}
            logprobs = self._chat_logprobs([t for t in chosen if id(t) not in ended])
        elif reply.job.top_logprobs is not None:
            read = [] if unechoed is None else reply.job.prompt[unechoed:]
            ids = [] if unechoed is None else reply.job.ids[unechoed:]
            logprobs = self._text_logprobs(
                [*ids, *(t.token for t in chosen)], [*read, *chosen], reply, whole or first
            )
        rest = {"index": number, "logprobs": logprobs, "finish_reason": reason}
        if not self.chat:
            return {"text": prompt + text, **rest}
        if whole:
            return {"message": {"role": "assistant", "content": text, "refusal": None}, **rest}
        return {"delta": {"content": text}, **rest}

    def _chat_logprobs(self, tokens: list[TokenLogprob]) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            name = self._name(token)
            return {"token": name, "logprob": logprob, "bytes": list(self.tokenizer.piece(token))}

        content = [
            {**one(t.token, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]}
            for t in tokens
        ]
        return {"content": content, "refusal": None}

    def _text_logprobs(
        self,
        ids: Sequence[int],
        scored: Sequence[TokenLogprob | None],
        reply: Reply,
        from_start: bool,
    ) -> dict[str, Any]:
        offsets, at = [], 0
        for token in ids:
            offsets.append(at)
            at += len(self.tokenizer.piece(token).decode(errors="ignore"))
        top = [t and {self._name(token): p for token, p in t.top} for t in scored]
        return {
            "tokens": [self._name(token) for token in ids],
            "token_logprobs": [t and t.logprob for t in scored],
            "top_logprobs": top,
            "text_offset": offsets if from_start else None,
        }

    def _name(self, token: int) -> str:
        special = self.tokenizer.special_name(token)
        if special:
            return special
        piece = self.tokenizer.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:  # a part of a character: tokens have names of their own
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def usage(replies: Replies) -> dict[str, Any]:
    """Tokens of the whole conversation, and how many of them did not have to be read."""
    read = {(id(r.job.ids), id(r.job.start)): r.job for r in replies}.values()
    known = sum(job.start.tokens_read for job in read)
    total = known + sum(len(job.ids) for job in read)
    written = sum(reply.job.written for reply in replies)
    return {
        "prompt_tokens": total,
        "completion_tokens": written,
        "total_tokens": total + written,
        "prompt_tokens_details": {"cached_tokens": known},
    }


def why_ended(reply: Reply) -> str | None:
    """Why an answer ended, in OpenAI's words: a server that stops cuts answers as a limit does."""
    return "length" if reply.job.reason == "cancelled" else reply.job.reason


async def news(replies: Replies) -> AsyncIterator[News]:
    """What is written of several answers, as it comes; the last of each, without pieces, says that
    it has ended."""
    if len(replies) == 1:
        async for pieces in replies[0].pieces():
            yield 0, pieces
        return
    queue: asyncio.Queue[News | None] = asyncio.Queue()

    async def follow(number: int, reply: Reply) -> None:
        async for pieces in reply.pieces():
            queue.put_nowait((number, pieces))
        queue.put_nowait(None)

    tasks = [asyncio.create_task(follow(*each)) for each in enumerate(replies)]
    try:
        open_ = len(tasks)
        while open_:
            if (new := await queue.get()) is None:
                open_ -= 1
            else:
                yield new
    finally:
        for task in tasks:
            task.cancel()


async def respond(
    request: Request,
    replies: Replies,
    form: Form,
    stream: bool,
    choose: Callable[[Replies], Awaitable[Sequence[int]]] | None = None,
) -> Response:
    """The answers, whole or as a stream; or those that are chosen of them when all have ended.

    Raises:
        ApiError: one was given up.
    """
    if stream:
        return AnswerStream(replies, form)
    pieces: list[list[Piece]] = [[] for _ in replies]
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            _leave(replies)

        tasks.start_soon(watch)
        async for number, new in news(replies):
            pieces[number] += new
        tasks.cancel_scope.cancel()
    for reply in replies:
        if reply.failure is not None:
            raise reply.failure
    if choose is not None:
        chosen = await choose(replies)
        replies, pieces = [replies[n] for n in chosen], [pieces[n] for n in chosen]
    return JSONResponse(form.whole(replies, pieces))


def _leave(replies: Replies) -> None:
    for reply in replies:
        reply.leave()


class AnswerStream(StreamingResponse):
    """The answers as server-sent events. A client that leaves ends them."""

    def __init__(self, replies: Replies, form: Form) -> None:
        self._replies = replies
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(form.events(replies), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _leave(self._replies)


def _delta(number: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
