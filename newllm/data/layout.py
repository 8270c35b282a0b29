"""Which files of a folder hold rows, and of which split.

Nothing is guessed where a guess could mix validation rows into training: what a name leaves open is
refused, with the name.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from newllm.data.containers import DAMAGED, RowFile, members, open_text
from newllm.data.json_rows import splits_inside
from newllm.data.rows import EXPECTED, is_text, kind_of, refusal_of, sniffed, suffixes
from newllm.errors import UserError

_SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation",
                   "evaluate", "validate", "holdout", "heldout"),
    "test": ("test", "testing", "tst"),
}  # fmt: skip
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_PARTS_OF_NAMES = ("data", "dataset", "set", "split", "file", "rows", "examples", "samples", "part")
_TYPING_ERRORS = ("trian", "tarin", "tain", "trin", "traim", "trains", "vaild", "vlaid", "valids",
                  "vals", "tset", "tets", "tests", "devs", "evals")  # fmt: skip
_LONG_WORDS = ("training", "validation", "evaluation")

_EDITORS_FOLDERS = {"__MACOSX", "__pycache__", "node_modules", "$RECYCLE.BIN", "@eaDir",
                    "lost+found", "System Volume Information", "Thumbs.db"}  # fmt: skip
_ABOUT_ROWS = re.compile(
    r"(dataset_infos?|dataset_dict|state|package|tsconfig|metadata|croissant)\.json$"
    r"|(readme|licen[cs]e|notice|changelog|contributing|requirements|citation|copying)\b.*",
    re.IGNORECASE,
)
"""Files that stand beside rows and hold none."""

_COPY = re.compile(r"( ?\(\d+\)|[ ._-]+copy( ?\d+| \(\d+\))?|[._-](old|bak|backup|orig)|~)$", re.I)
"""What programs append to the name of a copy."""


@dataclass
class Layout:
    """Files by split, and what has to be said about the others."""

    files: dict[str, list[RowFile]] = field(default_factory=dict)
    """By train, validation and test; or `all` of a single file."""
    notes: list[str] = field(default_factory=list)


def split_name(name: str) -> str | None:
    """The split in a name: `train-00000-of-00002`, `my_val`, `testSet`; None without one.

    Raises:
        UserError: it names two, or something like a misspelt one.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    words += ["holdout"] if re.search(r"held?[ _-]?out", name, re.IGNORECASE) else []
    found = {split for word in words if (split := _split_of_word(word))}
    if len(found) > 1:
        raise UserError(f"{name}: tells two splits ({' and '.join(sorted(found))}); {_NAME_IT}")
    if not found and (wrong := next(filter(_looks_like_a_split, words), None)):
        raise UserError(f"{name}: {wrong} looks like a split, but is none; {_NAME_IT}")
    return next(iter(found), None)


_NAME_IT = "rename it: train, validation or test, or none of these words"


def _split_of_word(word: str) -> str | None:
    for part in _PARTS_OF_NAMES:  # trainset, testdata
        if word.endswith(part) and (split := _SPLIT_OF.get(word[: -len(part)])):
            return split
    return _SPLIT_OF.get(word)


def _looks_like_a_split(word: str) -> bool:
    # trainval
    joined = any(word.startswith(one) and word[len(one) :] in _SPLIT_OF for one in _SPLIT_OF)
    near = difflib.get_close_matches(word, _LONG_WORDS, 1, 0.85)
    return joined or word in _TYPING_ERRORS or bool(near)


def find_rows(
    path: Path, own_splits: Mapping[str, str], folders: Collection[str], documents: bool = False
) -> Layout:
    """The files with rows at `path`, a file or a folder.

    Args:
        path: where to look.
        own_splits: a level's own names of splits -> ours; where one of them is there, the others
            are not read.
        folders: names of the folders that a level's parts have; where one is there, the others are
            not read.
        documents: whether files of any text are rows too, a document each (code, markup, notes).

    Raises:
        UserError: nothing can be read there, or what a name says is not clear.
    """
    if not path.exists():
        broken = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else (
            "no such file or folder"
        )  # fmt: skip
        raise UserError(f"{path}: {broken}; --data takes a path, hub, or sample (built-in rows)")
    if documents and (tree := _tree(path)) is not None:
        return tree
    if path.is_file():
        return _single(path, own_splits)
    layout = Layout()
    found = list(_candidates(path, layout))
    # Laid out like the Hub repository, the folder may hold parts that the level does not use.
    named = [row for row in found if set(_parts(row, path)) & set(folders)]
    if named and len(named) < len(found):
        layout.notes.append(f"{len(found) - len(named)} files in other folders are not read")
    found = named or found
    if not found:
        raise UserError(_nothing_in(path))
    _refuse_doubles(found)
    _sort_by_split(layout, found, path, own_splits)
    return layout


def _tree(path: Path) -> Layout | None:
    """A tree of texts, each a document; None where all that is there is in formats of rows.

    Names in it say nothing of splits (`test_parser.py`, `train/`), but where all on its first level
    do.
    """
    inside = None if path.is_dir() else members(path)
    if inside is not None:
        every = [RowFile(path, name) for name in sorted(inside) if not _hidden(PurePosixPath(name))]
    else:
        every = [RowFile(found) for found in ([path] if path.is_file() else _walk(path))]
    texts = [file for file in every if kind_of(file.name) is None and is_text(file)]
    if path.is_file() and inside is None:
        return Layout({"all": texts}) if texts else None
    if all(_ABOUT_ROWS.match(file.name) for file in texts):
        return None
    texts = sorted([*texts, *(f for f in every if kind_of(f.name) == "text")], key=str)
    layout = Layout()
    if left := len(every) - len(texts):
        layout.notes.append(f"not read: {left} file(s) that are no text, or rows in a table")
    splits = {file: _SPLIT_OF.get(_first_part(file, path)) for file in texts}
    named = {split for file, split in splits.items() if split or not _ABOUT_ROWS.match(file.name)}
    for file, split in splits.items():
        layout.files.setdefault((None not in named and split) or "train", []).append(file)
    return layout


def _first_part(file: RowFile, root: Path) -> str:
    """The first name on the way from `root` to a file, without its ending."""
    inside = PurePosixPath(file.member or file.path.relative_to(root))
    return inside.parts[0].partition(".")[0].lower()


def _single(path: Path, own_splits: Mapping[str, str]) -> Layout:
    if (inside := members(path)) is not None:
        layout, files = Layout(), _in_archive(path, inside)
        if not files:
            raise UserError(f"{path}: no rows in this archive; expected {EXPECTED}")
        _sort_by_split(layout, files, path, own_splits)
        return Layout({"all": files}) if len(files) == 1 else layout
    file = RowFile(path)
    if reason := refusal_of(path.name):
        raise UserError(f"{path}: {reason}; expected {EXPECTED}")
    if kind_of(path.name) is None and sniffed(file) is None:
        text = f"; {_PLAIN_TEXT}" if is_text(file) else ""
        raise UserError(f"{path}: unknown kind of file; expected {EXPECTED}{text}")
    layout = Layout()
    for part in _json_splits(file):
        layout.files.setdefault(split_name(part.part) or "all", []).append(part)
    return layout if layout.files else Layout({"all": [file]})


def _candidates(folder: Path, layout: Layout) -> Iterator[RowFile]:
    """The files in a folder that hold rows, in the order of their names."""
    unread: list[str] = []
    for path in _walk(folder):
        if path.suffix.lower() == ".zip":
            yield from _in_archive(path, members(path) or [])
        elif _is_rows(PurePosixPath(path.name)):
            yield from _json_splits(RowFile(path)) or [RowFile(path)]
        elif refusal_of(path.name) and not _ABOUT_ROWS.match(path.name):
            unread.append(f"{path.relative_to(folder)} is {refusal_of(path.name)}")
    if unread:
        more = f" ({len(unread) - 1} more like it)" if len(unread) > 1 else ""
        layout.notes.append(f"not read: {unread[0]}{more}")


def _in_archive(path: Path, inside: Sequence[str]) -> list[RowFile]:
    files = (RowFile(path, name) for name in sorted(inside) if _is_rows(PurePosixPath(name)))
    return [part for file in files for part in _json_splits(file) or [file]]


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files below a folder, links followed, without hidden ones and what editors keep."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    saved = _saved_files(folder)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _EDITORS_FOLDERS:
            continue
        path = folder / entry.name
        if entry.is_symlink() and not path.exists():
            if _is_rows(PurePosixPath(entry.name)) or not path.suffix:
                raise UserError(
                    f"{path}: a link to {os.readlink(path)}, which is not there; mend or remove it"
                )
        elif entry.is_dir():
            if os.path.realpath(path) not in above:  # a link to a folder that this one is in
                yield from _walk(path, above)
        elif saved is None or entry.name in saved:
            yield path


def _saved_files(folder: Path) -> set[str] | None:
    """The files that hold the rows of a folder written by `datasets`' `save_to_disk`; beside them
    may be its caches. None for any other folder."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {file["filename"] for file in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_rows(name: PurePosixPath) -> bool:
    named = kind_of(name.name) is not None and not _ABOUT_ROWS.match(name.name)
    return named and not _hidden(name)


def _hidden(name: PurePosixPath) -> bool:
    return any(p.startswith(".") or p in _EDITORS_FOLDERS for p in name.parts if p != "..")


def _json_splits(file: RowFile) -> list[RowFile]:
    """The splits in a JSON file that holds several, else nothing."""
    if suffixes(file.name)[1] != ".json":
        return []

    def is_split(name: str) -> bool:
        try:
            return split_name(name) is not None
        except UserError:
            return False

    try:
        with open_text(file) as text:
            return [RowFile(file.path, file.member, p) for p in splits_inside(text, is_split)]
    except DAMAGED:
        return []  # reported when it is read


def _parts(file: RowFile, root: Path) -> tuple[str, ...]:
    """The names on the way from `root` to the rows, without endings."""
    above = () if file.path == root else file.path.relative_to(root).parts
    inside = PurePosixPath(file.member.replace("\\", "/")).parts
    names = [*above, *inside, *([file.part] if file.part else [])]
    return tuple(suffixes(n)[0] if kind_of(n) or n.lower().endswith(".zip") else n for n in names)


def _sort_by_split(
    layout: Layout, found: Sequence[RowFile], root: Path, own_splits: Mapping[str, str]
) -> None:
    parts = {file: _parts(file, root) for file in found}
    own = {
        file: own_splits[name]
        for file in found
        for name in own_splits
        if any(
            re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", part, re.I) for part in parts[file]
        )
    }
    splits = own if own else {file: _split_of(file, parts[file]) for file in found}
    unnamed = [file for file in found if splits.get(file) is None]
    if len(unnamed) == len(found):
        layout.files["train"] = list(found)
        return
    for file in found:
        if split := splits.get(file):
            layout.files.setdefault(split, []).append(file)
    if unnamed:
        more = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        why = "of no split that this data set reads" if own else "no split in the name"
        layout.notes.append(f"not read: {unnamed[0]}{more} ({why}: train, validation or test)")
    if "train" not in layout.files and unnamed:
        raise UserError(f"{unnamed[0]}: no split in the name, others have one; {_NAME_IT}")


def _split_of(file: RowFile, parts: Sequence[str]) -> str | None:
    """The split that the names on the way to a file give."""
    try:
        found = {split for part in parts if (split := split_name(part))}
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if len(found) > 1:
        raise UserError(f"{file}: tells two splits ({' and '.join(sorted(found))}); {_NAME_IT}")
    return next(iter(found), None)


def _refuse_doubles(found: Sequence[RowFile]) -> None:
    """The same rows twice: packed and unpacked, in two formats, or as a copy."""
    plain: dict[Path, RowFile] = {}
    for file in found:
        if file.member or file.part:
            continue
        place = _place(file.path)
        if other := plain.get(place):
            raise UserError(f"{file}: the same rows as {other.name}, it seems; remove one of them")
        plain[place] = file
    for file in (file for file in found if file.member):
        unpacked = (file.path.parent / file.member, file.path.with_suffix("") / file.member)
        for place in (_place(file.path), *map(_place, unpacked)):
            if other := plain.get(place):
                raise UserError(f"{file}: the same rows as {other}, it seems; remove one of them")
    for place, file in plain.items():
        original = place.with_name(_COPY.sub("", place.name) or place.name)
        if original != place and (other := plain.get(original)):
            raise UserError(f"{file}: a copy of {other.name}, it seems; remove one of them")


def _place(path: Path) -> Path:
    """A path without compression, and without format where a table may be in several."""
    stem, ending, _ = suffixes(path.name)
    return path.with_name(stem + ending if kind_of(path.name) == "text" else stem)


_PLAIN_TEXT = "newllm train text reads plain text, whatever its name"


def _nothing_in(folder: Path) -> str:
    """What a folder without rows has instead."""
    seen = sorted({p.suffix.lower() or p.name for p in _walk(folder)})
    saw = f"saw {', '.join(seen[:5])}{' ..' if len(seen) > 5 else ''}; " if seen else ""
    first = next((refusal_of(p.name) for p in _walk(folder) if refusal_of(p.name)), None)
    why = f"({first}) " if first else ""
    read = any(is_text(RowFile(p)) for p in _walk(folder) if not _ABOUT_ROWS.match(p.name))
    text = f"; {_PLAIN_TEXT}" if read else ""
    return f"{folder}: no rows in this folder; {saw}{why}expected {EXPECTED}{text}"
