"""Pictures of the page for the guides: docs/img/*.png, from a real model and a real browser.

Usage: python scripts/screenshots.py [CHECKPOINT [CLIMB]]

Without a checkpoint, a small model is trained on the built-in sample first, for some minutes;
without the folder of a climb, one of a minute a level is made. Needs the `dev` extra and Debian's
chromium. What the model says is what it said, right or wrong.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "img"
NAME = "dolly_sample"
TRAIN = "train dolly --data sample".split()
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
CLIMB = "climb --data-dir sample --num-layers 1 --context-dim 128 --minutes 1 --keep-going".split()
TALKS = [
    ["Is it true that a frog barks?"],
    ["Lena has 1 lemon and finds 5 more. How many lemons does she have now?"],
    ["What is a pen for?", "What can I do on a rainy day?", "And what is a pen for?"],
]
"""The last conversation is the one that is shown."""
SEED = 3
COLOURS = 256
MOST_BYTES = 250_000


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sys.argv[1] if len(sys.argv) > 1 else train(Path(folder))
        climb = sys.argv[2] if len(sys.argv) > 2 else climbed(Path(folder))
        with served(checkpoint) as address, sync_playwright() as playwright:
            chromium = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            desktop = visit(browser, address, 1320, 860, "light")
            for talk in TALKS:
                desktop.click("#new")
                for question in talk:
                    ask(desktop, question)
            desktop.wait_for_timeout(500)
            keep(desktop, "chat")
            phone = visit(browser, desktop.url, 390, 780, "dark")
            expect(phone.locator("#messages li").first).to_be_visible()
            phone.wait_for_timeout(500)
            keep(phone, "phone")
            welcome = visit(browser, address, 1320, 960, "dark", "ja-JP")
            welcome.wait_for_timeout(500)
            keep(welcome, "welcome-ja")
            with exported(checkpoint, Path(folder)) as offline:
                talk_offline(browser, offline)
            show_progress(browser, climb, Path(folder))
            browser.close()


def talk_offline(browser: Browser, address: str) -> None:
    """The last conversation again, in the page that has no server."""
    page = visit(browser, address, 1320, 760, "dark")
    expect(page.locator("#model")).to_contain_text("parameters", timeout=60_000)
    for question in TALKS[-1]:
        ask(page, question)
    page.wait_for_timeout(500)
    keep(page, "offline")


def show_progress(browser: Browser, climb: str, folder: Path) -> None:
    """The page of a climb, from its beginning."""
    file = folder / "climb.html"
    newllm("progress", "--out", climb, "--html", str(file))
    page = browser.new_page(
        viewport={"width": 1100, "height": 1240}, color_scheme="light", locale="en-US"
    )
    page.goto(file.as_uri())
    keep(page, "progress")


def climbed(folder: Path) -> str:
    """The folder of a climb through all levels of the built-in sample."""
    out = str(folder / "climb")
    newllm(*CLIMB, "--out", out)
    return out


def train(folder: Path) -> str:
    """A model of the built-in sample."""
    newllm(*TRAIN, "--name", NAME, "--out", str(folder))
    return str(folder / f"best_{NAME}.pt")


def newllm(*arguments: str) -> None:
    """Run a command of this package."""
    subprocess.run([sys.executable, "-m", "newllm", *arguments], cwd=ROOT, check=True)


@contextmanager
def served(checkpoint: str) -> Iterator[str]:
    """Serve a checkpoint; its address."""
    with started("-m", "newllm", "serve", checkpoint) as address:
        yield address


@contextmanager
def exported(checkpoint: str, folder: Path) -> Iterator[str]:
    """The example page with a checkpoint's graphs; its address."""
    graphs = folder / "onnx"
    newllm("export", checkpoint, "--format", "onnx", "-o", str(graphs))
    subprocess.run([sys.executable, "examples/browser/fetch.py"], cwd=ROOT, check=True)
    with started("examples/browser/serve.py", str(graphs)) as address:
        yield address


@contextmanager
def started(*command: str) -> Iterator[str]:
    """Run a server on a free port; its address."""
    command = (sys.executable, *command, "--port", "0")
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"(http://[^\s,]+) ", server.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield found[1]
    finally:
        server.terminate()
        server.wait()


def visit(
    browser: Browser, address: str, width: int, height: int, colours: str, locale: str = "en-US"
) -> Page:
    """The page as somebody sees it who has just come."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=2 if width < 800 else 1.25,
        color_scheme="dark" if colours == "dark" else "light",
        locale=locale,
        is_mobile=width < 800,
    )
    context.add_init_script(f"localStorage.setItem('newllm.sampling', '{{\"seed\": {SEED}}}')")
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#model")).not_to_be_empty()
    return page


def ask(page: Page, question: str) -> None:
    """Say something, and print what came of it."""
    answers = page.locator("#messages .assistant")
    count = answers.count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    expect(answers).to_have_count(count + 1)
    expect(answers.last.locator(".note")).not_to_be_empty(timeout=60_000)
    expect(page.locator("#send")).to_be_visible()
    print(f"You: {question}\nModel: {answers.last.locator('.text').inner_text()}")
    print(f"  ({answers.last.locator('.note').inner_text()})")


def keep(page: Page, name: str) -> None:
    """Write what is to be seen, in few colours."""
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = IMAGES / f"{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path.name} is larger than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
