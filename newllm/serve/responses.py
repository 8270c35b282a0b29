"""The form of OpenAI's `/v1/responses`, texts alone."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from newllm.inference.engine import Piece
from newllm.serve.answers import Replies, news, usage
from newllm.serve.schemas import ResponsesRequest


@dataclass(frozen=True)
class ResponsesForm:
    """One answer as a response object, whole or as the events that build it."""

    asked: ResponsesRequest
    temperature: float
    top_p: float
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, replies: Replies, pieces: list[list[Piece]]) -> dict[str, Any]:
        return self._response(replies, self._status(replies), [self._message(replies)])

    async def events(self, replies: Replies) -> AsyncIterator[bytes]:
        number, place = 0, {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}

        def event(kind: str, **content: Any) -> bytes:
            nonlocal number
            body = {"type": kind, "sequence_number": number, **content}
            number += 1
            return f"event: {kind}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()

        begun = self._response(replies, "in_progress", [])
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        item = {**self._message(replies), "status": "in_progress", "content": []}
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **place, part=_text(""))
        async for _, pieces in news(replies):
            text = "".join(piece.text for piece in pieces)
            if text:
                yield event("response.output_text.delta", **place, delta=text, logprobs=[])
        status, message = self._status(replies), self._message(replies)
        if status == "failed":
            yield event("response.failed", response=self._response(replies, status, []))
            return
        said = replies[0].job.answer.text
        yield event("response.output_text.done", **place, text=said, logprobs=[])
        yield event("response.content_part.done", **place, part=_text(said))
        yield event("response.output_item.done", output_index=0, item=message)
        response = self._response(replies, status, [message])
        yield event(f"response.{status}", response=response)

    def _status(self, replies: Replies) -> str:
        if replies[0].failure is not None:
            return "failed"
        return "completed" if replies[0].job.reason == "stop" else "incomplete"

    def _message(self, replies: Replies) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "status": "completed" if replies[0].job.reason == "stop" else "incomplete",
            "role": "assistant",
            "content": [_text(replies[0].job.answer.text)],
        }

    def _response(
        self, replies: Replies, status: str, output: list[dict[str, Any]]
    ) -> dict[str, Any]:
        counted = usage(replies)
        begun = status == "in_progress"
        failure = replies[0].failure if status == "failed" else None
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": failure and {"code": "server_error", "message": str(failure)},
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": self.asked.instructions,
            "max_output_tokens": self.asked.max_output_tokens,
            "metadata": self.asked.metadata or {},
            "model": self.asked.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": None if begun else {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": counted["prompt_tokens_details"],
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            },
        }  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
