"""The site of `make docs`: whole, its links lead somewhere, and it is read without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a link or anchor that leads nowhere, or a page in no menu, fails."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    for page in [*pages, Path("index.md"), Path("ja/index.md"), Path("CHANGELOG.md")]:
        assert (site / page.with_suffix(".html")).is_file(), page


def test_nothing_is_fetched_to_read_it(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for kind, loaded in (("script", "src"), ("link", "href"), ("img", "src")):
            for address in re.findall(rf'<{kind}\b[^>]*\b{loaded}="?(https?:[^"\s>]+)', text):
                pytest.fail(f"{page.name}: {kind} {address}")


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = (site / "API.html").read_text(encoding="utf-8")
    for name in ("newllm.load", "TrainedModel.evaluate", "ChatSession.say", "UserError"):
        assert f'id="{name}"' in text or f'.{name}"' in text, name
