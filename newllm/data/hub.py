"""Rows of a Hub repository (or of a folder laid out like one), through the library `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from newllm.data.layout import split_name
from newllm.data.located import Item, Located, Rows
from newllm.datasets.base import HubRepository
from newllm.errors import UserError
from newllm.files import sha256

if TYPE_CHECKING:
    import datasets


_LEAST_HELD_OUT = 1000
"""Validation rows that are read of a stream, at least."""


@dataclass(frozen=True)
class HubRows:
    """What a repository holds."""

    splits: dict[str, Rows]
    """By our names of splits; `all` where a name says nothing."""
    identity: str
    """Changes whenever the rows do."""
    revision: str | None
    """Commit of the repository; None offline, and of a folder."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of each split, where the repository's card says so and they were not all fetched."""


_NAMED = re.compile(r"hub:(?P<id>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")


def named_repository(name: str) -> HubRepository:
    """The repository of `hub:ORG/NAME[:CONFIG][@REVISION]`; a folder laid out like one may stand
    for ORG/NAME.

    Raises:
        UserError: it is no such name.
    """
    place = name.removeprefix("hub:")
    if place and Path(place).is_dir():  # before the pattern: a path may have a colon, as C:\ has
        return HubRepository(place)
    found = _NAMED.fullmatch(name)
    if found is None or not (
        Path(found["id"]).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", found["id"])
    ):
        raise UserError(f"--data {name}: expected hub:ORG/NAME[:CONFIG][@REVISION]")
    configurations = () if found["config"] is None else (found["config"],)
    return HubRepository(found["id"], configurations, revision=found["revision"])


def open_hub(
    repository: HubRepository, folders: list[str], head: bool, most: int | None = None
) -> HubRows:
    """Open a repository, or some folders of it (none: all).

    With `head` only the first rows of each split will be read: a file is fetched when its first row
    is wanted, and the files after the last row never. With `most`, so many training rows are read
    as a stream, and no file is stored.

    Raises:
        Exception: dozens of kinds, when it cannot be had.
    """
    import huggingface_hub

    revision, is_folder = None, Path(repository.id).is_dir()
    if not is_folder:  # a folder laid out like a repository has no revision
        try:
            revision = (
                huggingface_hub.HfApi()
                .dataset_info(repository.id, revision=repository.revision)
                .sha
            )
        except (OSError, huggingface_hub.errors.OfflineModeIsEnabled):
            revision = None  # offline: `datasets` may still have all of it in its cache
    if most is not None and (revision or is_folder):
        return _streamed(repository, folders, revision, most)
    if head and (revision or is_folder):
        return _by_file(repository, folders, revision)
    return _whole(repository, folders, revision)


def _our_split(repository: HubRepository, name: str) -> str | None:
    """Our name of a repository's split; None for one that is not read."""
    if repository.splits:
        return repository.splits.get(name)
    return split_name(name) or "all"


def _whole(repository: HubRepository, folders: list[str], revision: str | None) -> HubRows:
    import datasets

    parts: dict[str, list[datasets.Dataset]] = {}
    for configuration, folder in product(repository.configurations or [None], folders or [None]):
        loaded = datasets.load_dataset(
            repository.id, configuration, data_dir=folder, revision=revision
        )
        for name, part in cast("datasets.DatasetDict", loaded).items():
            if split := _our_split(repository, str(name)):
                parts.setdefault(split, []).append(part)

    def rows(tables: list[datasets.Dataset], name: str) -> Rows:
        return lambda: _located(f"{repository.id} {name}", chain.from_iterable(tables))

    identity = revision or "-".join(t._fingerprint for tables in parts.values() for t in tables)
    splits = {name: rows(tables, name) for name, tables in parts.items()}
    return HubRows(splits, identity, revision)


def _streamed(
    repository: HubRepository, folders: list[str], revision: str | None, most: int
) -> HubRows:
    import datasets

    parts: dict[str, list[Any]] = {}
    files: list[str] = []
    for configuration, folder in product(repository.configurations or [None], folders or [None]):
        arguments = (repository.id, configuration)
        more: dict[str, Any] = {"data_dir": folder, "revision": revision}
        for name, part in datasets.load_dataset(*arguments, **more, streaming=True).items():
            if split := _our_split(repository, str(name)):
                parts.setdefault(split, []).append(part)
        if revision is None:
            places = datasets.load_dataset_builder(*arguments, **more).config.data_files or {}
            files += [str(place) for found in places.values() for place in found]
    # Where rows have to be set aside, they are a tenth of what is read.
    alone = not parts.keys() & {"validation", "test"}
    limits = {split: max(_LEAST_HELD_OUT, most // 10) for split in ("validation", "test")}
    first = -(-most * 10 // 9) if alone else most

    def rows(split: str) -> Rows:
        tables = chain.from_iterable
        return lambda: islice(
            _located(f"{repository.id} {split}", tables(parts[split])), limits.get(split, first)
        )

    identity = revision or "-".join(sha256(Path(file)) for file in files)
    return HubRows({split: rows(split) for split in parts}, f"{identity}:{first}", revision)


def _by_file(repository: HubRepository, folders: list[str], revision: str | None) -> HubRows:
    import datasets

    files: dict[str, list[tuple[str, str]]] = {}  # split -> kind and place of each file
    known: dict[str, list[int | None]] = {}
    for configuration, folder in product(repository.configurations or [None], folders or [None]):
        builder = datasets.load_dataset_builder(
            repository.id, configuration, data_dir=folder, revision=revision
        )
        kind = type(builder).__module__.rpartition(".")[2]
        counts = builder.info.splits if folder is None else None  # else those of all folders
        for name, places in (builder.config.data_files or {}).items():
            if split := _our_split(repository, str(name)):
                files.setdefault(split, []).extend((kind, str(place)) for place in places)
                known.setdefault(split, []).append(_count(counts, str(name)))
    if not files:
        raise ValueError("no data files")

    def rows(split: str) -> Rows:
        def fetched() -> Iterator[Any]:
            for kind, place in files[split]:
                yield from _fetch(kind, place)

        return lambda: _located(f"{repository.id} {split}", fetched())

    places = [f"{split} {place}" for split, found in files.items() for _, place in found]
    return HubRows(
        {split: rows(split) for split in files},
        revision or "-".join(sha256(Path(place.partition(" ")[2])) for place in places),
        revision,
        {split: sum(map(int, c)) for split, c in known.items() if None not in c},  # type: ignore[arg-type]
    )


def _count(splits: Any, name: str) -> int | None:
    """Rows of a split by the repository's card."""
    return (splits[name].num_examples or None) if splits and name in splits else None


def _fetch(kind: str, place: str) -> datasets.Dataset:
    """The rows of one file, from the cache of `datasets` if they are there."""
    import datasets

    try:
        table = datasets.load_dataset(kind, data_files=[place], split="train")
    except Exception as error:  # the libraries raise dozens of kinds for "not to be had"
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{place} cannot be had from the Hub ({reason}); give the same command again: what was "
            "fetched and encoded is kept"
        ) from None
    return cast("datasets.Dataset", table)


def _located(where: str, rows: Any) -> Iterator[Item]:
    return (Located(f"{where}:{number}", row) for number, row in enumerate(rows, start=1))
