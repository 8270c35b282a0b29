"""The files of the browser page, read once: a request is looked up among them, not on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from newllm.serve.errors import ApiError
from newllm.serve.page_headers import FOLDER, KINDS, page_headers

_HEADERS = page_headers()


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class BrowserPage:
    """What is served at `/` and beside it."""

    def __init__(self) -> None:
        """Read every file of the page."""
        self._files = {
            file.name: _File(file.read_bytes(), KINDS[file.suffix])
            for file in FOLDER.iterdir()
            if file.suffix in KINDS
        }
        self._files[""] = self._files["index.html"]

    async def show(self, request: Request) -> Response:
        """One of the files; a browser that has it already is told so.

        Raises:
            ApiError: there is none of this name.
        """
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise ApiError(404, "there is nothing here; see docs/SERVING.md", "not_found")
        headers = {**_HEADERS, "ETag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)
