"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

_INNER = ("role", "content", "type", "text", "name", "include_usage")
"""Fields inside of fields."""


class ApiError(Exception):
    """A request that is refused; the message is one line that says what to do."""

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
    """What a body does wrong first."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, reason = first["type"], first["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {reason}", "invalid_json")
    place = first["loc"]  # with the names of a union's types in it
    names = [str(part) for part in place[1:] if isinstance(part, int) or part in _INNER]
    param = ".".join([*map(str, place[:1]), *names]) or None
    if kind == "extra_forbidden":
        return ApiError(400, f"this server knows no parameter {param}", "unknown_parameter", param)
    if kind == "missing":
        return ApiError(400, f"{param} is missing", "missing_required_parameter", param)
    reason = reason.removeprefix("Value error, ")
    return ApiError(400, f"{param}: {reason}" if param else reason, "invalid_value", param)
