"""ARCHITECTURE.md begins with the tree: it names every file of the package, none that is gone."""

from __future__ import annotations

from pathlib import Path

import newllm

PACKAGE = Path(newllm.__file__).parent
PAGE = PACKAGE.parent / "docs" / "ARCHITECTURE.md"


def test_the_tree_is_that_of_the_package() -> None:
    tree = PAGE.read_text(encoding="utf-8").split("```")[1].splitlines()[2:]
    named, folder = set(), ""
    for line in tree:
        indent = len(line) - len(line.lstrip())
        names = [part.strip() for part in line.strip().split("  ")[0].split(",")]
        if indent == 2 and names[0].endswith("/"):
            folder = names[0]
            named.add(f"{folder}__init__")
        elif indent == 2:
            named.add(names[0].removesuffix(".py"))
        else:
            named |= {folder + name for name in names if not name.endswith("/")}
    files = {file.relative_to(PACKAGE).with_suffix("").as_posix() for file in PACKAGE.rglob("*.py")}
    inner = {file for file in files if file.endswith("/__init__") and file.count("/") == 2}
    assert named == files - inner


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 250
