"""The example's server with a tiny model, and pages of it in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from newllm.trained import TrainedModel
from tests.examples.talking import GREEDY, choose, exported, started
from tests.export.conftest import Save, save  # noqa: F401 (a fixture)
from tests.serve.browsing import SECONDS, browser  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def graphs(trained: TrainedModel) -> Path:
    return exported(trained, trained.path.with_name("onnx"))


@pytest.fixture(scope="module")
def address(graphs: Path) -> Iterator[str]:
    with started(graphs) as found:
        yield found


@pytest.fixture(scope="module")
def modules(browser: Browser, address: str) -> Iterator[Page]:  # noqa: F811
    """A page in which the example's modules can be called; without a model."""
    page = browser.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}/icon.svg")
    yield page
    page.close()


@pytest.fixture(scope="module")
def visited(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:  # noqa: F811
    """The page with the model in it, and what went wrong or elsewhere."""
    context = browser.new_context(accept_downloads=True, locale="en-US")
    page, faults = context.new_page(), []
    page.set_default_timeout(SECONDS * 1000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            faults.append(request.url)
            if not request.url.startswith((address, f"blob:{address}"))
            else None
        ),
    )
    page.goto(address)
    expect(page.locator("#model")).to_contain_text("parameters", timeout=3 * SECONDS * 1000)
    yield page, faults
    context.close()


@pytest.fixture
def page(visited: tuple[Page, list[str]]) -> Iterator[Page]:
    """The page in a new conversation; nothing may go wrong in it unnoticed."""
    page, faults = visited
    choose(page, **GREEDY)
    page.click("#new")
    yield page
    assert faults == []


@pytest.fixture(scope="module")
def trained(save: Save, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:  # noqa: F811
    """Without counts, as the graphs are: what Python says is what they say."""
    return save(tmp_path_factory.mktemp("run") / "model.pt", counts=0)
