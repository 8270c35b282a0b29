"""The site of `make docs`: pages that stand outside docs/, and links as they are on the site.

A page is written to be read where it stands, on disk or in a repository's view. Here its links are
turned into those of the site; what the site does not have (source files, folders) is named only.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "README.ja.md": "ja/index.md",
    **{name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")},
    "examples/browser/README.md": "examples/browser/README.md",
}
"""Pages outside docs/: path in the repository -> path on the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^(```.*?^```)", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside docs/."""
    for source, path in OUTSIDE.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn a page's links into the site's, outside of code blocks."""
    path = page.file.src_uri
    source = {site: where for where, site in OUTSIDE.items()}.get(path, f"docs/{path}")
    known = {file.src_uri for file in files}

    def moved(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        if not target or ":" in target:
            return found.group()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = OUTSIDE.get(wanted, wanted.removeprefix("docs/"))
        if place not in known:
            return text
        there = posixpath.relpath(place, posixpath.dirname(path) or ".")
        return f"{image}[{text}]({there}{anchor or ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)
