"""The progress page: self-contained, escaped, in two languages, with everything on it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from newllm.cli import main
from newllm.datasets import DATASETS
from newllm.report import page_text
from newllm.report.page import choose_next, pick_answers, progress_page, view
from newllm.report.page_text import Translator
from newllm.report.progress import Progress, read_progress
from newllm.results.marks import BpbVerdict
from newllm.results.records import AnswersRecord
from tests.report.conftest import AddRun, write_climb

HOSTILE = "</dd><script>alert(1)</script><img src=x onerror=alert(2)>&\"' {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "hr", "input", "circle", "line", "polyline", "rect"}


class Page(HTMLParser):
    """Collects tags, checks that they close in order, and keeps what is said by language."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, given in self.tags if (value := given.get(name)) is not None]


@pytest.fixture
def full(add_run: AddRun, tmp_path: Path) -> Progress:
    """Every status, both protocols, both kinds of marks, a climb, and what could not be read."""
    mark = BpbVerdict(1.6, 10, 3.0, True, "a GRU")
    add_run("dolly", 16.0, tokenizer="word1000")
    add_run("dolly", 1.5, bpb_mark=mark, answer=HOSTILE)
    add_run("hh_rlhf", 30.0, tokenizer="word1000")
    add_run("hh_rlhf", 1.9, bpb_mark=replace(mark, cleared=False), data="sample", name="other")
    add_run("ultrachat", 1.4, finished=False)
    add_run("math", 40.0, tokenizer="word1000")
    add_run("code_alpaca", 30.0, tokenizer="word1000", init_from="x.pt")
    add_run("wikitext2", 2.5)
    add_run("wikitext2", 2.6, name="second")
    write_climb(tmp_path / "runs", [{"dolly": 1.5}, {"dolly": 1.7, "hh_rlhf": 1.4},
                                    {"dolly": 1.4, "hh_rlhf": 1.4, "math": 1.1}])  # fmt: skip
    add_run("dolly", 1.5, name="broken").summary.write_text("{")
    return read_progress(tmp_path / "runs")


def test_everything_is_on_the_page_in_both_languages(full: Progress) -> None:
    page = Page(progress_page(full))
    for text in (
        "Not cleared: PPL 30.00 is not below the mark of 21",
        "Cleared: PPL 16.00 is below the mark of 17 (margin +1.00, cleared)",
        "In bits per byte: cleared, below 1.6000 (a GRU).",
        "a guess, which a table of counts passes",
        "The vocabulary came with --from",
        "Trained on built-in rows",
        "training, epoch 3 of 3",
        "10 malformed rows left out",
        "Backward transfer +0.0500 bits per byte: earlier levels got better.",
        "num_layers 1 → 4",
        "A processor",
        "abc123",
        "left out: ",
    ):
        assert text in page.text, text
    for text in (
        "合格です",
        "不合格",
        "後方転移 +0.0500",
        "助言",
        "壊れた行 10 件を除外",
        "学習中",
    ):
        assert text in page.text, text


def test_nothing_is_fetched_and_only_its_own_script_runs(full: Progress) -> None:
    html = progress_page(full)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "base")]
    assert not page.attributes("src")
    assert all(target.startswith("#") for target in page.attributes("href"))
    namespaces = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"<]+", html)) <= namespaces
    assert not re.search(r"url\(|@import", html)
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_texts_of_files_are_escaped(full: Progress, add_run: AddRun, tmp_path: Path) -> None:
    """An answer, a run's name, a source and a data set's name that would be markup."""
    html = progress_page(full)
    assert Page(html).text.count(HOSTILE) == 2 * 3, "three epochs, two languages"
    assert "<img" not in html
    add_run("dolly", 0.1, name="hostile", data="<script>x</script>")
    for file in (tmp_path / "runs").glob("*hostile*"):
        file.rename(file.with_name(file.name.replace("hostile", "<b>&'\"")))
    climb = (tmp_path / "runs" / "climb.json").read_text()
    (tmp_path / "runs" / "climb.json").write_text(climb.replace("hh_rlhf", "<i>hh"))
    html = progress_page(read_progress(tmp_path / "runs"))
    page = Page(html)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<script>x" not in html
    assert "<b>&'\"" in page.text
    assert "after <i>hh" in page.text


def test_it_can_be_used_by_everybody(full: Progress) -> None:
    """Unique ids, titles and descriptions of drawings, tables behind charts, heads of tables."""
    page = Page(progress_page(full))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for reference in page.attributes("aria-labelledby"):
        assert set(reference.split()) <= set(ids)
    for target in page.attributes("href"):
        assert target[1:] in ids
    names = [tag for tag, _ in page.tags]
    charts = sum(given.get("class") == "chart" for _, given in page.tags)
    assert charts == names.count("desc") > 8
    assert names.count("figure") == charts
    buttons = [given for tag, given in page.tags if tag == "button"]
    assert all(given.get("type") == "button" for given in buttons)
    assert {given.get("lang") for tag, given in page.tags if tag == "div" and "data-title" in given
            } == {"en", "ja"}  # fmt: skip
    heads = [given for tag, given in page.tags if tag == "th"]
    assert all(given.get("scope") in ("row", "col") for given in heads)


def test_every_text_has_its_japanese() -> None:
    advice = {step.text for level in DATASETS.values() for a in level.advice.values() for step in a}
    assert advice <= set(page_text.ADVICE_JA)
    for english, japanese in page_text.JAPANESE.items():
        source = page_text._ENGLISH.get(english, english)
        assert set(re.findall(r"{(\w+)}", source)) == set(re.findall(r"{(\w+)}", japanese)), english
    assert set(page_text._ENGLISH) <= set(page_text.JAPANESE)


def test_no_japanese_is_without_use(full: Progress, add_run: AddRun, tmp_path, monkeypatch) -> None:
    said = set()
    real = Translator.__call__

    def noting(self: Translator, text: str, **values: object) -> str:
        said.add(text)
        return real(self, text, **values)

    monkeypatch.setattr(Translator, "__call__", noting)
    folder = tmp_path / "runs"
    progress_page(full)
    for path in folder.iterdir():
        path.unlink()
    add_run("dolly", 14.0, tokenizer="word1000", subset="all", data="sample")
    stage = {"run": "x_preferred", "after": 0.571, "longer": 0.51}
    write_climb(folder, [{"dolly": 1.5}, {"dolly": 1.7, "hh_rlhf": 1.4}], stage)
    progress_page(read_progress(folder))
    (folder / "climb.json").unlink()
    for path in folder.glob("*.yaml"):
        path.unlink()
    add_run("wikitext2", 1.4)
    progress_page(read_progress(folder))
    add_run("math", 14.0, tokenizer="word1000")
    progress_page(read_progress(folder))
    assert said >= set(page_text.JAPANESE)


@pytest.mark.parametrize(
    ("epochs", "chosen"), [([], []), ([1], [1]), ([1, 2], [1, 2]), (range(1, 9), [1, 4, 8])]
)
def test_answers_of_the_first_a_middle_and_the_last_epoch(epochs, chosen) -> None:
    lines: list[AnswersRecord] = [
        {"epoch": e, "answers": [{"prompt": "a", "answer": f"{e}"}], "repetition_rate": 0.0}
        for e in epochs
    ]
    talks = pick_answers(lines)
    assert [epoch for talk in talks for epoch, _ in talk.answers] == chosen


def test_what_to_do_next(add_run: AddRun, tmp_path: Path) -> None:
    """Finish what was begun; else the advice of the highest level."""
    t = Translator("en")
    add_run("dolly", 14.0, tokenizer="word1000")
    add_run("ultrachat", 30.0, tokenizer="word1000", num_layers=1)
    step = choose_next(read_progress(tmp_path / "runs"), t)
    assert step is not None
    assert step.text == "UltraChat: 4 layers"
    add_run("hh_rlhf", 1.4, finished=False)
    step = choose_next(read_progress(tmp_path / "runs"), t)
    assert step is not None
    assert "--resume" in step.command


def test_a_run_that_has_only_begun(add_run: AddRun, tmp_path: Path) -> None:
    files = add_run("dolly", 1.5, finished=False)
    files.metrics.write_text("")
    files.answers.unlink()
    html = progress_page(read_progress(tmp_path / "runs"))
    assert "training, epoch 1 of" in Page(html).text
    assert view(read_progress(tmp_path / "runs"), Translator("ja")).climb is None


def test_the_file_is_written_and_told(add_run: AddRun, tmp_path: Path, capsys) -> None:
    add_run("dolly", 1.5)
    target = tmp_path / "a folder" / "page.html"
    assert main(["progress", "--out", str(tmp_path / "runs"), "--html", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_place_that_cannot_be_written_is_one_line(add_run: AddRun, tmp_path, capsys) -> None:
    add_run("dolly", 1.5)
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "page.html"):
        assert main(["progress", "--out", str(tmp_path / "runs"), "--html", str(target)]) == 2
        error = capsys.readouterr().err
        assert f"--html {target}: cannot be written" in error
        assert error.count("\n") == 1
