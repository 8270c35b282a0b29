"""The files of the browser page, wherever they are served: their kinds, their headers, their bytes.

The example that serves the page without this server imports this, so it needs no extra package.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_headers(*more_scripts: str) -> dict[str, str]:
    """Headers of every file: no outside resource, and no text that becomes HTML or code.

    Args:
        more_scripts: sources of scripts allowed besides the page's own, as a content security
            policy names them.
    """
    policy = [
        "default-src 'none'",
        " ".join(["script-src 'self'", *more_scripts]),
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text can become HTML
        "trusted-types 'none'",
    ]
    return {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@dataclass(frozen=True)
class PageFile:
    """One file."""

    content: bytes
    kind: str
    """Its media type."""
    tag: str
    """Differs whenever the content does (an HTTP entity tag)."""


def read_page() -> dict[str, PageFile]:
    """All files by the path they are served at: requests are looked up here, not on the disk."""
    found = {}
    for file in FOLDER.iterdir():
        if file.suffix in KINDS:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = PageFile(content, KINDS[file.suffix], tag)
    return {**found, "": found["index.html"], "docs": found["docs.html"]}
