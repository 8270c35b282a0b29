"""What requests may say, and the errors that refuse them. Nothing unknown is ignored silently."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from starlette.responses import JSONResponse, Response

from newllm.datasets.conversations import Conversation
from newllm.inference.sampler import Sampling

_MOST_STOPS = 4
_INNER = ("role", "content", "type", "text", "name", "include_usage")
"""Fields inside of fields."""


class ApiError(Exception):
    """A request that is refused; the message is one line that says what to do.

    OpenAI's clients read {"error": {"message", "type", "param", "code"}}.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def to_dict(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The same as a response."""
        wait = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.to_dict(), self.status, headers=wait)


def invalid_body(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, reason = first["type"], first["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {reason}", "invalid_json")
    path = first["loc"]  # with the names of a union's types in it
    names = [str(part) for part in path[1:] if isinstance(part, int) or part in _INNER]
    param = ".".join([*map(str, path[:1]), *names]) or None
    if kind == "extra_forbidden":
        return ApiError(400, f"this server knows no parameter {param}", "unknown_parameter", param)
    if kind == "missing":
        return ApiError(400, f"{param} is missing", "missing_required_parameter", param)
    reason = reason.removeprefix("Value error, ")
    return ApiError(400, f"{param}: {reason}" if param else reason, "invalid_value", param)


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is no part of a text")
    return text


Text = Annotated[str, AfterValidator(_plain)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SamplingRequest(_Request):
    """How tokens are drawn; what is not given is as :class:`Sampling` has it."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    repetition_penalty: float | None = Field(None, ge=1, le=10)

    def sampling(self, default: Sampling) -> Sampling:
        """What is asked for, and the default for the rest."""

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return getattr(default, name) if value is None else value

        seed = default.seed if self.seed is None else self.seed % 2**63
        return Sampling(chosen("temperature"), chosen("top_p"), seed, chosen("repetition_penalty"))


class StreamOptions(_Request):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class AnswerRequest(SamplingRequest):
    """What all requests for an answer have."""

    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | list[Annotated[str, Field(min_length=1, max_length=256)]]
        | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > _MOST_STOPS:
            raise ValueError(f"at most {_MOST_STOPS} stop strings")
        return stop


class _OpenAI(AnswerRequest):
    """What OpenAI's clients send to either end point."""

    model: str
    n: int | None = 1
    frequency_penalty: float | None = 0
    presence_penalty: float | None = 0
    user: str | None = None
    metadata: dict[str, str] | None = None

    @field_validator("n")
    @classmethod
    def _one(cls, n: int | None) -> int | None:
        if n not in (None, 1):
            raise ValueError("this server writes one answer a request (n=1)")
        return n

    @field_validator("frequency_penalty", "presence_penalty")
    @classmethod
    def _none(cls, penalty: float | None) -> float | None:
        if penalty not in (None, 0):
            raise ValueError("this server has no such penalty (0); see repetition_penalty")
        return penalty


class _TextPart(_Request):
    type: Literal["text"]
    text: Text


class ChatMessage(_Request):
    """One message; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(_OpenAI):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def conversation(self) -> Conversation:
        """The messages as the model knows them."""
        return [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text}
            for m in self.messages
        ]

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be the user's")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return self


class CompletionRequest(_OpenAI):
    """POST /v1/completions: a text to go on with."""

    prompt: Text | list[Text]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    suffix: None = None

    @field_validator("prompt")
    @classmethod
    def _single(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and len(prompt) != 1:
            raise ValueError("one prompt a request")
        return prompt

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class SessionRequest(SamplingRequest):
    """POST /v1/sessions: a new conversation."""

    system: Text | None = None


class TurnRequest(AnswerRequest):
    """POST /v1/sessions/ID/turns: the new turn alone."""

    content: Text
    context: bool = False
    """Tell what the context vectors look like as the answer is written."""
