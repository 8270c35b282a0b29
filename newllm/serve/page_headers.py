"""What goes with the page's files wherever they are served: their kinds and what they may do."""

from __future__ import annotations

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
        "require-trusted-types-for 'script'",  # text cannot become HTML, whoever wrote it
        "trusted-types 'none'",
    ]
    return {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
