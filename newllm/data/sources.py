"""Where rows come from: the Hub, local files, or the built-in sample.

Whatever the place, a source gives the same: located rows by split, and a fingerprint of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from newllm.config import Settings
from newllm.data.containers import RowFile
from newllm.data.hub import named_repository, open_hub
from newllm.data.layout import find_rows
from newllm.data.located import Item, Located, Malformed, Rows
from newllm.data.rows import Division, kind_of, read_file
from newllm.datasets import find_dataset
from newllm.datasets.base import Dataset
from newllm.errors import UserError, did_you_mean
from newllm.files import sha256

SAMPLES = Path(__file__).parents[1] / "datasets" / "samples"
"""The built-in rows, a folder a data set: written by `tools/samples` of the source tree."""

SPLIT_SEED = 42
"""Seed of the 90/10 split where a data set has none; part of the protocol, so no setting."""


@dataclass(frozen=True)
class Source:
    """Rows by split, and what identifies them."""

    description: str
    """For people: what was read."""
    fingerprint: str
    """Changes whenever the rows do."""
    splits: dict[str, Rows] = field(repr=False)
    """By name: train, validation, test; or `all` where the source knows no splits."""
    revision: str | None = None
    """Commit of the Hub repository, if it came from there."""
    counts: dict[str, int] = field(default_factory=dict, repr=False)
    """Rows of each split, where that is known without reading them."""
    notes: tuple[str, ...] = field(default=(), repr=False)
    """What a person should know: files that were not read."""

    def training_splits(self) -> tuple[Rows, Rows]:
        """(train, validation); lacking the latter, test rows; lacking those, 90/10 by seed 42."""
        name = "train" if "train" in self.splits else "all"
        train = self.splits.get(name)
        if train is None:
            raise UserError(f"{self.description}: no training rows (a file named train.*)")
        validation = self.splits.get("validation") or self.splits.get("test")
        if validation:
            return train, validation
        return _split(train, self.description, self.counts.get(name))

    def evaluation_split(self) -> Rows:
        """Validation rows, lacking those test rows; of a single file, all rows."""
        for name in ("all", "validation", "test"):
            if name in self.splits:
                return self.splits[name]
        return self.training_splits()[1]


def open_chosen(settings: Settings) -> Source:
    """The rows that the settings of a run ask for; see :func:`open_source`."""
    return open_source(
        find_dataset(settings.dataset),
        settings.data,
        settings.subset,
        head=settings.max_samples is not None and settings.tokenizer == "word1000",
        columns=settings.columns,
        splits=settings.splits,
        most=settings.max_samples,
        documents=settings.documents,
    )


def open_source(
    level: Dataset,
    data: str,
    subset: str = "all",
    head: bool = False,
    columns: Sequence[str] = (),
    splits: Sequence[str] = (),
    most: int | None = None,
    documents: Division | None = None,
) -> Source:
    """Open `data`: "hub", "sample", hub:ORG/NAME, or a path to a file or folder.

    Args:
        level: the data set; says where it is on the Hub and which parts it has.
        data: where the rows are.
        subset: the part that is wanted ("all": every one that the level names).
        head: whether only the first rows of each split will be read; of the Hub's files, those
            that hold no such row are not fetched.
        columns: OURS=THEIRS, what the fields that the data set is read from are called there.
        splits: OURS=THEIRS, what the splits are called there; the others are not read.
        most: training rows that will be read at most; hub:ORG/NAME is then read as a stream.
        documents: what is one document of plain text in files; None: as `read_file` says.

    Raises:
        UserError: nothing can be read there, with what to do instead.
    """
    if subset != "all" and subset not in level.subsets:
        known = ", ".join(level.subsets) or "none"
        raise UserError(f"--subset {subset}: {level.name} has no such part (its parts: {known})")
    names, ours = _pairs("--columns", columns, level.fields), ("train", "validation", "test")
    own_splits = {theirs: name for name, theirs in _pairs("--splits", splits, ours).items()}
    if data == "hub" or data.startswith("hub:"):
        if data != "hub":
            parts = {} if subset == "all" else level.subsets  # this set need not have them
            level = replace(level, hub=(named_repository(data),), subsets=parts)
        if own_splits:
            level = replace(level, hub=tuple(replace(r, splits=own_splits) for r in level.hub))
        source = _hub(level, subset, head, most if data != "hub" else None)
    else:
        local = data != "sample"
        source = _local(Path(data), level, own_splits, documents) if local else _sample(level.name)
        source = source if subset == "all" else _only(source, subset, level)
    return _renamed(source, names, level.forms) if names else source


def _pairs(option: str, words: Sequence[str], ours: Collection[str]) -> dict[str, str]:
    """OURS=THEIRS as a dictionary.

    Raises:
        UserError: a word is not OURS=THEIRS, or OURS is unknown or given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, theirs = word.partition("=")
        if not equals or not theirs:
            raise UserError(f"{option} {word}: expected OURS=THEIRS")
        if name not in ours:
            raise UserError(f"{option} {word}: there is no {name}{did_you_mean(name, ours)}")
        if name in found:
            raise UserError(f"{option} {word}: {name} was {found[name]} already")
        found[name] = theirs
    return found


def _renamed(source: Source, names: Mapping[str, str], alone: bool) -> Source:
    """Rows whose fields have our names; `alone`: no others."""

    def renamed(rows: Rows) -> Rows:
        def with_our_names() -> Iterator[Item]:
            for item in rows():
                if not isinstance(item, Located):
                    yield item
                    continue
                row = {ours: item.row.get(theirs) for ours, theirs in names.items()}
                if all(value is None for value in row.values()):
                    has = ", ".join(map(str, item.row)) or "none"
                    wanted = " or ".join(names.values())
                    yield Malformed(item.where, f"no field {wanted}; the row has {has}")
                    continue
                kept = {} if alone else {k: v for k, v in item.row.items() if k not in row}
                yield Located(item.where, {**kept, **row})

        return with_our_names

    identity = json.dumps([source.fingerprint, *sorted(names.items())])
    return replace(
        source,
        fingerprint=hashlib.sha256(identity.encode(errors="replace")).hexdigest(),
        splits={name: renamed(rows) for name, rows in source.splits.items()},
    )


def _only(source: Source, subset: str, level: Dataset) -> Source:
    """The rows of one part; rows say theirs by the folder they lie in, or by a field `subset`."""
    folder = level.subsets[subset]

    def part(rows: Rows) -> Rows:
        def chosen() -> Iterator[Item]:
            for item in rows():
                belongs = part_of(item, folder, level)
                if belongs is None:
                    raise UserError(
                        f"--subset {subset}: {item.where} does not say which part it belongs to "
                        f"(a folder {folder}/ or a field 'subset'); leave --subset out"
                    )
                if belongs:
                    yield item

        return chosen

    return Source(
        description=f"{source.description} ({subset})",
        fingerprint=hashlib.sha256(f"{source.fingerprint}/{subset}".encode()).hexdigest(),
        splits={name: part(rows) for name, rows in source.splits.items()},
        revision=source.revision,
        notes=source.notes,
    )


def part_of(item: Item, folder: str, level: Dataset) -> bool | None:
    """Whether an item belongs to the part; None where neither field nor folder says."""
    if isinstance(item, Located) and isinstance(item.row.get("subset"), str):
        return item.row["subset"] == folder
    folders = set(Path(item.where).parent.parts)
    if folders & set(level.subsets.values()):
        return folder in folders
    return None if isinstance(item, Located) else True


def _split(rows: Rows, description: str, count: int | None) -> tuple[Rows, Rows]:
    @cache  # counted when rows are wanted, once
    def held_out() -> np.ndarray:
        total = sum(1 for _ in rows()) if count is None else count
        if total < 2:
            wrong = next((i for i in rows() if isinstance(i, Malformed)), None)
            if wrong is not None:
                raise UserError(f"{wrong.where}: {wrong.reason}")
            only = next(iter(rows()), None)
            if only is None:
                raise UserError(f"{description}: there are no rows in it")
            hint = ""
            if isinstance(only, Located) and list(only.row) == ["text"]:
                hint = "; --documents block makes a row of what blank lines part"
            elif isinstance(only, Located):
                has = ", ".join(map(str, only.row))[:120] or "none"
                hint = f"; its fields: {has}"
            raise UserError(
                f"{description}: {total} row(s), too few to set validation rows aside{hint}"
            )
        # The very rows that `datasets`' train_test_split(test_size=0.1, seed=42) sets aside, which
        # the published numbers were measured on.
        held = np.zeros(total, dtype=bool)
        held[np.random.default_rng(SPLIT_SEED).permutation(total)[: math.ceil(total / 10)]] = True
        return held

    def part(wanted: bool) -> Rows:
        def chosen() -> Iterator[Item]:
            held, number = held_out(), -1
            for number, row in enumerate(rows()):
                if number < len(held) and held[number] == wanted:
                    yield row
            if number + 1 != len(held):
                raise UserError(
                    f"{description}: {number + 1:,} rows now, {len(held):,} were expected; give "
                    "the same command again when nothing else writes there"
                )

        return chosen

    return part(False), part(True)


def _sample(dataset: str) -> Source:
    files = {name: SAMPLES / dataset / f"{name}.jsonl.gz" for name in ("train", "validation")}
    if not all(file.is_file() for file in files.values()):
        raise UserError(f"{dataset}: there is no built-in sample; give rows with --data PATH")

    def rows(split: str, file: Path) -> Rows:
        return lambda: (
            replace(item, where=f"sample {split}:{number}")
            for number, item in enumerate(read_file(file), start=1)
        )

    splits = {name: rows(name, file) for name, file in files.items()}
    # Of the rows and not of the files: the same whatever compressed them, and the same as when the
    # rows were still made by the package, which caches and checkpoints of that time hold.
    content = json.dumps(
        [[item.row for item in part() if isinstance(item, Located)] for part in splits.values()]
    )
    return Source(
        description=f"built-in sample of {dataset}",
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        splits=splits,
    )


def _hub(level: Dataset, subset: str, head: bool, most: int | None) -> Source:
    if not level.hub:
        raise UserError(f"{level.name} is made of your own rows: give them with --data PATH")
    failure = ""
    for repository in level.hub:
        folders = list(level.subsets.values() if subset == "all" else [level.subsets[subset]])
        try:
            found = open_hub(repository, folders, head, most)
        except UserError:
            raise
        except Exception as error:  # the libraries raise dozens of kinds for "not to be had"
            failure = failure or " ".join(str(error).split())[:400]
            continue
        chosen: list[Any] = [repository.id, found.identity, folders]
        if repository not in find_dataset(level.name).hub:  # of which all is known by the name
            chosen += [repository.configurations, sorted(repository.splits.items())]
        identity = json.dumps(chosen)
        return Source(
            description=f"{repository.id}@{(found.revision or 'cached')[:12]}",
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
            splits=found.splits,
            revision=found.revision,
            counts=found.counts,
        )
    has_sample = (SAMPLES / level.name).is_dir()
    sample = ", or use the built-in rows with --data sample" if has_sample else ""
    raise UserError(
        f"{level.hub[0].id} cannot be had from the Hub ({failure}); give your copy with "
        f"--data PATH{sample}"
    )


# -- local files ---------------------------------------------------------------------------------


def _local(
    path: Path, level: Dataset, own_splits: Mapping[str, str], division: Division | None
) -> Source:
    if not own_splits:
        own_splits = {name: ours for place in level.hub for name, ours in place.splits.items()}
    layout = find_rows(path, own_splits, level.subsets.values(), level.documents)
    digest = hashlib.sha256()
    sha256_of = cache(sha256)  # of an archive once, whatever is in it
    for name, files in sorted(layout.files.items()):
        for file in files:
            try:
                content = sha256_of(file.path)
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror})") from None
            # JSON and Parquet are recognised by their bytes, the others by their names.
            kind = kind_of(file.name)
            how = [kind] if kind in ("csv", "text", "arrow") else []
            how += ["documents"] if kind is None and level.documents else []
            how += [division] if division and kind in ("text", None) else []
            where = [part for part in (file.member, file.part) if part]
            digest.update(f"{':'.join([name, content, *how, *where])}\n".encode(errors="replace"))

    def rows(files: list[RowFile]) -> Rows:
        return lambda: (
            item for file in files for item in read_file(file, division, level.documents)
        )

    return Source(
        description=str(path),
        fingerprint=digest.hexdigest(),
        splits={name: rows(files) for name, files in layout.files.items()},
        notes=tuple(layout.notes),
    )
