"""What the server offers, as an OpenAPI 3.1 document: `/openapi.json`, which `/docs` shows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import newllm
from newllm.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    SessionRequest,
    TokenizeRequest,
    TurnRequest,
)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_QUERY = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
    {"name": "after", "in": "query", "schema": {"type": "string"}},
    {"name": "search", "in": "query", "schema": {"type": "string"}},
]
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_OPERATIONS: list[tuple[str, str, str, type[BaseModel] | None, int]] = [
    ("get", "/health", "Whether requests are taken", None, 200),
    ("get", "/metrics", "Counters for Prometheus", None, 200),
    ("get", "/v1/models", "The models", None, 200),
    ("get", "/v1/models/{id}", "One model", None, 200),
    ("post", "/v1/chat/completions", "Answer a conversation", ChatRequest, 200),
    ("post", "/v1/completions", "Go on with texts", CompletionRequest, 200),
    ("post", "/v1/responses", "Answer, in OpenAI's newer form", ResponsesRequest, 200),
    ("post", "/tokenize", "The tokens of a text", TokenizeRequest, 200),
    ("post", "/detokenize", "The text of tokens", DetokenizeRequest, 200),
    ("get", "/v1/sessions", "The conversations kept, a page at a time", None, 200),
    ("post", "/v1/sessions", "Begin a conversation that is kept", SessionRequest, 201),
    ("post", "/v1/sessions/file", "Go on with a session file", None, 201),
    ("get", "/v1/sessions/{id}", "One conversation, with its transcript", None, 200),
    ("delete", "/v1/sessions/{id}", "Forget it", None, 200),
    ("post", "/v1/sessions/{id}/turns", "Say something in it", TurnRequest, 200),
    ("post", "/v1/sessions/{id}/fork", "Go on in a copy", None, 201),
    ("post", "/v1/sessions/{id}/undo", "Take the last turn back", None, 200),
    ("get", "/v1/sessions/{id}/file", "Save it to a file", None, 200),
]
"""Method, path, summary, what the body says, status of success."""


def document(guarded: bool) -> dict[str, Any]:
    """The document; `guarded`: whether requests need a key."""
    schemas = [body for *_, body, _ in _OPERATIONS if body is not None]
    names, defined = models_json_schema(
        [(schema, "validation") for schema in schemas],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, status in _OPERATIONS:
        success = {"application/json": {"schema": {"type": "object"}}}
        if path == "/metrics":
            success = {"text/plain": {"schema": {"type": "string"}}}
        elif path.endswith("/file") and method == "get":
            success = _BINARY
        elif body is not None and "stream" in body.model_fields:
            success = {**success, **_EVENTS}
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                str(status): {"description": "Done", "content": success},
                "default": {
                    "description": "Refused, with the reason",
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
                    },
                },
            },
        }
        if body is not None:
            content = {"application/json": {"schema": names[body, "validation"]}}
            operation["requestBody"] = {"required": True, "content": content}
        elif path == "/v1/sessions/file":
            operation["requestBody"] = {"required": True, "content": _BINARY}
        if "{id}" in path:
            operation["parameters"] = [_ID]
        elif (method, path) == ("get", "/v1/sessions"):
            operation["parameters"] = _QUERY
        paths.setdefault(path, {})[method] = operation
    components: dict[str, Any] = {"schemas": {**defined["$defs"], "Error": _ERROR}}
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "New-LLM", "version": newllm.__version__},
        "paths": paths,
        "components": components,
    }
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"key": []}]
    return whole
