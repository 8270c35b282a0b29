"""What requests may say, and the errors that refuse them. Nothing unknown is ignored silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictInt,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

from newllm.datasets.conversations import Conversation
from newllm.inference.sampling import Sampling

_MOST_STOPS = 4
MOST_ANSWERS = 128
"""Answers that one request asks for: prompts times `n`."""


class ApiError(Exception):
    """A request that is refused; the message is one line that says what to do.

    OpenAI's clients read {"error": {"message", "type", "param", "code"}}.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

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
        wait = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.to_dict(), self.status, headers={**wait, **self.headers})


def shutting_down() -> ApiError:
    """The server takes no more, and has not read what was asked."""
    return ApiError(503, "the server is shutting down", "shutting_down")


def invalid_body(error: ValidationError, content: bytes) -> ApiError:
    """What is wrong with a body: of several things, the one that is deepest in it.

    (Of the kinds that a value may be of, that is the one that was meant.)
    """
    errors = error.errors(include_url=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        reason = f"the body is not valid JSON: {_no_text(content) or errors[0]['msg']}"
        return ApiError(400, reason, "invalid_json")
    body = json.loads(content)
    places = [_place(e["loc"], body, e["type"]) for e in errors]
    place = max(places, key=len)
    first = errors[places.index(place)]
    kind, reason = first["type"], first["msg"].removeprefix("Value error, ")
    # Of a value that may be of several kinds (a prompt may be a list) all are listed.
    here = [e["msg"] for e, other in zip(errors, places, strict=True) if other == place]
    kinds = dict.fromkeys(message.removeprefix("Value error, ") for message in here)
    if kind not in ("extra_forbidden", "missing") and len(kinds) > 1:
        reason = "; or: ".join(kinds)
    name, colon, why = reason.partition(": ")
    if colon and name.isidentifier():  # a rule about several values says which one is wrong
        place, reason = [*place, name], why
    param = ".".join(place) or None
    if kind == "extra_forbidden":
        return ApiError(400, f"this server knows no parameter {param}", "unknown_parameter", param)
    if kind == "missing":
        return ApiError(400, f"{param} is missing", "missing_required_parameter", param)
    return ApiError(400, f"{param}: {reason}" if param else reason, "invalid_value", param)


def _no_text(content: bytes) -> str:
    """What a body is that is no UTF-8 without a mark, as some programs write it."""
    if content[:3] == b"\xef\xbb\xbf" or content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it begins with a byte order mark; send UTF-8 without one"
    return "it is compressed; send it as it is" if content[:2] == b"\x1f\x8b" else ""


def first_reason(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    return error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")


def _place(path: tuple[int | str, ...], body: Any, kind: str) -> list[str]:
    """Where in the body an error is, as messages, 1, content: without the names of types."""
    here = body
    found: list[str] = []
    for number, part in enumerate(path, start=1):
        keys = here if isinstance(here, dict) else range(len(here) if isinstance(here, list) else 0)
        if part in keys:
            inside: Any = here
            here = inside[part]
        elif not (kind == "missing" and number == len(path)):
            continue
        found.append(str(part))
    return found


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is no part of a text")
    return text


Text = Annotated[
    str, AfterValidator(_plain), WithJsonSchema({"type": "string", "pattern": r"^[^\u0000]*$"})
]


Whole = StrictInt
"""8, and as JSON has it 8.0; no text, no truth value."""
Number = Annotated[float, Strict()]


def _nothing(*values: Any, why: str) -> Any:
    """The type of a parameter that others have: what asks for nothing is taken, the rest refused.

    Args:
        values: that ask for nothing, besides null.
        why: the refusal.
    """

    def check(value: Any) -> Any:
        if value is not None and not any(value == v and type(value) is type(v) for v in values):
            raise ValueError(why)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [None, *values]})]


_NO_TOOLS = "this server calls no tools; leave it out"
_ONLY_TEXT = "this server writes plain text alone; leave it out"


def _nullable(schema: dict[str, Any]) -> None:
    """Say in an object's JSON schema that null is as good as nothing."""
    for name, of_field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()) and of_field != {"type": "null"}:
            about = {k: of_field.pop(k) for k in ("title", "default") if k in of_field}
            schema["properties"][name] = {**about, "anyOf": [of_field, {"type": "null"}]}


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 8.0 is 8, also in lists."""
    if isinstance(value, list):
        return [_whole(each) for each in value]
    exact = isinstance(value, float) and abs(value) < 2**53 and value.is_integer()
    return int(value) if exact else value


class _Request(BaseModel):
    """null always means: not given."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {k: _whole(v) for k, v in given.items() if v is not None or k in required}


class SamplingRequest(_Request):
    """How tokens are drawn; what is not given is as :class:`Sampling` has it."""

    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    repetition_penalty: Number | None = Field(None, ge=1, le=10)
    top_k: Whole | None = Field(None, ge=-1, lt=2**31)
    """0 or -1: all tokens."""
    min_p: Number | None = Field(None, ge=0, le=1)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)

    def sampling(self, default: Sampling, number: int = 0) -> Sampling:
        """What is asked for, and the default for the rest.

        Args:
            default: for what is not given.
            number: of the answer among those that one request asks for; each has its own seed.
        """
        given = {name: getattr(self, name) for name in SamplingRequest.model_fields}
        chosen = replace(default, **{name: x for name, x in given.items() if x is not None})
        seed = None if chosen.seed is None else (chosen.seed + number) % 2**63
        return replace(chosen, seed=seed, top_k=max(0, chosen.top_k))


class StreamOptions(_Request):
    """What a stream has besides the answer."""

    include_usage: StrictBool = False
    include_obfuscation: _nothing(False, why="this server has no obfuscation") = None  # type: ignore[valid-type]


class AnswerRequest(SamplingRequest):
    """What all requests for an answer have."""

    max_tokens: Whole | None = Field(None, ge=1)
    """Cut at the server's limit."""
    min_tokens: Whole = Field(0, ge=0)
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | list[Annotated[str, Field(min_length=1, max_length=256)]]
        | None
    ) = None
    stream: StrictBool = False
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
    n: Whole = Field(1, ge=1, le=MOST_ANSWERS)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    logit_bias: _nothing({}, why="this server has no logit_bias; leave it out") = None  # type: ignore[valid-type]


def _without_empty(schema: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """An object without what the schema does not know and what says nothing."""
    return {k: v for k, v in given.items() if k in schema.model_fields or not _says_nothing(v)}


def _says_nothing(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_says_nothing, value.values()))
    return all(map(_says_nothing, value)) if isinstance(value, list) else value in (None, "")


class _TextPart(_Request):
    type: Literal["text"]
    text: Text


class ChatMessage(_Request):
    """One message; `developer` is another word for `system`.

    Whatever else a client's own object of an answer has is taken as long as it is empty.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["role", "content"],
            "if": {"properties": {"role": {"const": "assistant"}}},
            "else": {"properties": {"content": {"not": {"type": "null"}}}},
        }
    )

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_TextPart] | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_clients(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("role") in ("tool", "function"):
            raise ValueError(f"role: {_NO_TOOLS}")
        if given.get("content") is None and given.get("role") != "assistant":
            raise PydanticCustomError("missing", "content: is missing")
        return _without_empty(cls, given)

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(_OpenAI):
    """POST /v1/chat/completions. A last message of the assistant's is continued."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: StrictBool = False
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: _nothing([], why=_NO_TOOLS) = None  # type: ignore[valid-type]
    tool_choice: _nothing("none", "auto", why=_NO_TOOLS) = None  # type: ignore[valid-type]
    parallel_tool_calls: _nothing(True, False, why=_NO_TOOLS) = None  # type: ignore[valid-type]
    functions: _nothing([], why=_NO_TOOLS) = None  # type: ignore[valid-type]
    function_call: _nothing("none", "auto", why=_NO_TOOLS) = None  # type: ignore[valid-type]
    response_format: _nothing({"type": "text"}, why=_ONLY_TEXT) = None  # type: ignore[valid-type]
    modalities: _nothing(["text"], why=_ONLY_TEXT) = None  # type: ignore[valid-type]
    store: _nothing(False, why="this server stores no completions; see /v1/sessions") = None  # type: ignore[valid-type]
    service_tier: _nothing("auto", "default", why="this server has no tiers") = None  # type: ignore[valid-type]

    @property
    def conversation(self) -> Conversation:
        """The messages as the model knows them, but for a last one that is continued."""
        said = self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages
        return [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in said
        ]

    @property
    def begun(self) -> str | None:
        """How the answer begins: the last message, if it is the assistant's."""
        return self.messages[-1].text if self.messages[-1].role == "assistant" else None

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        roles = [m.role for m in self.messages]
        if roles[-1] == "assistant":
            roles.pop()
        if roles[-1:] != ["user"]:
            raise ValueError("messages: the last one, but for an answer's beginning, is the user's")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return self


_Ids = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(_OpenAI):
    """POST /v1/completions: texts, or the ids of texts, to go on with."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1)]
    )
    max_tokens: Whole | None = Field(None, ge=0)
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: StrictBool = False
    best_of: Whole | None = Field(None, ge=1, le=MOST_ANSWERS)
    """Write so many answers to each prompt; given are the `n` that the reward head likes best."""
    suffix: _nothing("", why="this server writes no text before a suffix") = None  # type: ignore[valid-type]

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The texts, or their ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        if len(self.prompts) * self.written > MOST_ANSWERS:
            raise ValueError(f"prompt: at most {MOST_ANSWERS} answers a request")
        if self.written < self.n:
            raise ValueError("best_of: must not be less than n")
        if self.written > self.n and self.stream:
            raise ValueError("best_of: none is chosen before all are written; omit stream")
        return self

    @property
    def written(self) -> int:
        """Answers that are written to each prompt."""
        return self.n if self.best_of is None else self.best_of


class _InputPart(_Request):
    type: Literal["input_text", "output_text", "text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _of_clients(cls, given: Any) -> Any:
        return _without_empty(cls, given) if isinstance(given, dict) else given


class _InputMessage(_Request):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_InputPart]
    id: str | None = None
    status: str | None = None


class ResponsesRequest(SamplingRequest):
    """POST /v1/responses: OpenAI's newer form, texts alone."""

    model: str
    input: Text | Annotated[list[_InputMessage], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Whole | None = Field(None, ge=1)
    stream: StrictBool = False
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: _nothing([], why=_NO_TOOLS) = None  # type: ignore[valid-type]
    tool_choice: _nothing("none", "auto", why=_NO_TOOLS) = None  # type: ignore[valid-type]
    parallel_tool_calls: _nothing(True, False, why=_NO_TOOLS) = None  # type: ignore[valid-type]
    text: _nothing({"format": {"type": "text"}}, {}, why=_ONLY_TEXT) = None  # type: ignore[valid-type]
    truncation: _nothing("disabled", "auto", why="this server cuts nothing") = None  # type: ignore[valid-type]
    include: _nothing([], why="this server includes nothing besides") = None  # type: ignore[valid-type]
    background: _nothing(False, why="this server answers at once") = None  # type: ignore[valid-type]
    store: _nothing(False, why="this server stores no responses; see /v1/sessions") = None  # type: ignore[valid-type]
    previous_response_id: _nothing(why="this server stores no responses; see /v1/sessions") = None  # type: ignore[valid-type]
    service_tier: _nothing("auto", "default", why="this server has no tiers") = None  # type: ignore[valid-type]

    def as_chat(self) -> ChatRequest:
        """The same question, asked of /v1/chat/completions."""
        said = [] if self.instructions is None else [_message("system", self.instructions)]
        if isinstance(self.input, str):
            said.append(_message("user", self.input))
        for message in self.input if isinstance(self.input, list) else ():
            parts = message.content
            text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
            said.append(_message(message.role, text))
        sampling = {name: getattr(self, name) for name in SamplingRequest.model_fields}
        return ChatRequest.model_validate(
            {**sampling, "model": self.model, "messages": said, "stream": self.stream,
             "max_tokens": self.max_output_tokens}
        )  # fmt: skip


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class TokenizeRequest(_Request):
    """POST /tokenize: a text (under either name that other servers have), or a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [n]} for n in ("content", "prompt", "messages")]}
    )

    model: str | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special: StrictBool = False
    """Begin with the token that begins every text."""

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if sum(given is not None for given in (self.content, self.prompt, self.messages)) != 1:
            raise ValueError("exactly one of content, prompt and messages")
        try:
            self.as_chat()
        except ValidationError as error:
            raise ValueError(first_reason(error)) from None
        return self

    def as_chat(self) -> ChatRequest | None:
        """The conversation, as if an answer were asked for."""
        if self.messages is None:
            return None
        return ChatRequest.model_validate({"model": "", "messages": self.messages})


class DetokenizeRequest(_Request):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[Whole, Field(ge=0)]]


class SessionRequest(SamplingRequest):
    """POST /v1/sessions: a new conversation."""

    model: str | None = None
    """With one of the models; the first, if nothing is said."""
    system: Text | None = None


class TurnRequest(AnswerRequest):
    """POST /v1/sessions/ID/turns: the new turn alone."""

    content: Text
    revision: str | None = None
    """Refuse if the conversation is not as it was when it had this one."""
    context: StrictBool = False
    """Send pictures of the context vectors as the answer is written."""
