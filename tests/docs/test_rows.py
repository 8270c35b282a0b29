"""The table of formats is what is read: every example of it; and three lines lead to a talk."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from newllm.cli import main
from newllm.data.containers import COMPRESSIONS
from newllm.data.located import Located
from newllm.data.rows import KINDS
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from tests.docs.test_guides import QUICK, commands_in, read

PAGES = ("docs/REFERENCE.md", "docs/ja/REFERENCE.md")
TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]


def cells(page: str) -> list[list[str]]:
    """The rows of the two tables of the section on rows."""
    section = re.split(r"^## ", read(page), flags=re.MULTILINE)
    (rows,) = (part for part in section if part.startswith(("Rows\n", "行\n")))
    lines = [line for line in rows.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_every_format_has_an_example_that_is_read(page: str, tmp_path: Path) -> None:
    chat = DATASETS["chat"]
    rows = [row for row in cells(page) if len(row) == 3][1:]
    named = {ending for row in rows for ending in re.findall(r"\.[a-z0-9]+", row[0])}
    assert named == {*KINDS, *COMPRESSIONS, ".zip"}
    before = re.escape(rows[0][0])
    for number, (file, _, examples) in enumerate(rows):
        endings = re.findall(r"\.[a-z0-9]+", file) or re.findall(r"\.[a-z0-9]+", before)
        before = file
        for example in re.findall(r"`(.+?)`(?:,|$)", examples):
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            table = folder / "t.csv"
            if example.startswith("python "):
                table.write_text("question,answer\nHi?,Yes.\n")
                command = [sys.executable, *shlex.split(example)[1:]]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                table.unlink()
            else:
                (folder / f"rows{endings[0]}").write_text(example.replace("\\n", "\n"))
            source = open_source(chat, str(folder))
            (first, *_) = next(iter(source.splits.values()))()
            assert isinstance(first, Located), example
            text = [{"role": "text", "content": "A first text."}]
            assert chat.conversation(first.row) == (text if ".txt" in endings else TALK), example
            for left in folder.iterdir():
                left.rename(tmp_path / f"done-{number}-{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize("page", PAGES)
def test_every_form_has_an_example_that_is_read(page: str) -> None:
    forms = [row for row in cells(page) if len(row) == 2][1:]
    assert len(forms) == 9
    for _, examples in forms:
        for example in re.findall(r"`(.+?)`(?:,|$)", examples):
            said = DATASETS["chat"].conversation(json.loads(example))
            assert said in (TALK, [{"role": "text", "content": "Yes."}]), example


def test_three_lines_from_a_table_to_a_talk(tmp_path: Path, monkeypatch, capsys) -> None:
    text = read("README.md")
    text = text[text.index("### Your own rows") :]
    commands = [c.arguments for c in commands_in(text[: text.index("\n## ")])]
    assert [c[0] for c in commands if c] == ["data", "train", "chat"]
    monkeypatch.chdir(tmp_path)
    lines = "".join(f'What comes after {i}?,"{i + 1}, I think."\n' for i in range(40))
    (tmp_path / "my.csv").write_text(f"question,answer\n{lines}")
    for arguments in commands:
        assert arguments is not None
        monkeypatch.setattr("sys.stdin", io.StringIO("What comes after 3?\n"))
        assert main([*arguments, *QUICK[arguments[0]].split()]) == 0, capsys.readouterr().err
    assert "Model: " in capsys.readouterr().out
