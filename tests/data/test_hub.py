"""The Hub, read from folders laid out like its repositories."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from newllm.data import hub
from newllm.data.located import Located
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import Source, open_source
from newllm.datasets import DATASETS
from newllm.datasets.base import Dataset, HubRepository
from newllm.errors import UserError

ROWS = [{"instruction": f"q{i}", "context": "", "response": f"a{i}"} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def hub_level(repository: str) -> Dataset:
    """Dolly, from another place on the Hub."""
    return replace(DATASETS["dolly"], hub=(HubRepository(repository),))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_hub_shaped_folder_through_datasets(tmp_path: Path) -> None:
    """The road a Hub repository takes, read from a folder laid out like one."""
    write(tmp_path / "hub" / "data" / "train-00000-of-00001.jsonl", LINES)
    source = open_source(hub_level(str(tmp_path / "hub")), "hub")
    train, validation = source.training_splits()
    assert sum(1 for _ in train()) == 18
    assert sum(1 for _ in validation()) == 2
    assert source.fingerprint


def test_mirrors_configurations_and_split_names(tmp_path: Path) -> None:
    """The first repository that answers is taken; its parts and splits as the level says."""
    mirror = tmp_path / "mirror"
    front = "---\nconfigs:\n"
    for part, split in (("algebra", "train_sft"), ("geometry", "train_sft"),
                        ("algebra", "test_sft"),
                        ("geometry", "test_sft"), ("algebra", "train_gen")):  # fmt: skip
        write(mirror / part / f"{split}.jsonl", LINES)
    for part in ("algebra", "geometry"):
        files = {p.stem: f"{part}/{p.name}" for p in (mirror / part).iterdir()}
        front += f"- config_name: {part}\n  data_files:\n"
        front += "".join(f"  - split: {s}\n    path: {path}\n" for s, path in files.items())
    write(mirror / "README.md", front + "---\n")
    names = {"train_sft": "train", "test_sft": "test"}
    level = replace(
        DATASETS["dolly"],
        hub=(
            HubRepository("someone/not-to-be-had"),
            HubRepository(str(mirror), ("algebra", "geometry"), names),
        ),
    )
    source = open_source(level, "hub")
    assert set(source.splits) == {"train", "test"}
    train, validation = source.training_splits()
    assert sum(1 for _ in train()) == 40
    assert sum(1 for _ in validation()) == 40


def test_hub_parts_are_folders_of_the_repository(tmp_path: Path) -> None:
    for part in ("helpful-base", "harmless-base", "helpful-online"):
        for split, rows in (("train", 3), ("test", 1)):
            row = {"chosen": f"\n\nHuman: {part}\n\nAssistant: x", "rejected": ""}
            write(tmp_path / part / f"{split}.jsonl", (json.dumps(row) + "\n") * rows)
    level = replace(DATASETS["hh_rlhf"], hub=(HubRepository(str(tmp_path)),))
    for subset, count in (("all", 6), ("helpful", 3)):
        train = open_source(level, "hub", subset).training_splits()[0]
        texts = [item.row["chosen"] for item in train() if isinstance(item, Located)]
        assert len(texts) == count
        assert not any("online" in text for text in texts)


def many_files(folder: Path, card: str = "") -> Source:
    """Three files of 20 training rows each, read from the first row on."""
    for number in range(3):
        rows = [{"instruction": f"q{number}-{i}", "response": "a"} for i in range(20)]
        write(
            folder / "data" / f"train-{number}.jsonl", "".join(json.dumps(r) + "\n" for r in rows)
        )
    write(folder / "README.md", card)
    return open_source(hub_level(str(folder)), "hub", head=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files fetched, in order, each once."""
    names, fetch = [], hub._fetch

    def listed(kind: str, place: str) -> object:
        names.extend({Path(place).name} - set(names))
        return fetch(kind, place)

    monkeypatch.setattr(hub, "_fetch", listed)
    return names


def test_of_the_hub_only_the_files_that_hold_the_first_rows(tmp_path: Path, fetched) -> None:
    lines = '{"instruction": "q", "response": "a"}\n' * 600
    for number in range(3):
        write(tmp_path / "data" / f"test-{number}.jsonl", lines)
    source = many_files(tmp_path)
    encoding = Encoding("dolly", "word1000", 1000, 128, max_samples=25)
    assert encoding.head
    assert not fetched
    counts = prepare_training(source, encoding).accounting
    assert (counts["train"].rows, counts["validation"].rows) == (25, 1000)
    assert fetched == ["train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "test-1.jsonl"]
    whole = open_source(hub_level(str(tmp_path)), "hub").training_splits()[0]
    first = [item.row for item in whole() if isinstance(item, Located)][:25]
    rows = islice(source.training_splits()[0](), 25)
    assert [item.row for item in rows if isinstance(item, Located)] == first


CARD = """---
dataset_info:
  splits:
  - name: train
    num_bytes: 1
    num_examples: 60
---
"""


@pytest.mark.parametrize(("card", "files"), [(CARD, 1), ("", 3)])
def test_a_card_with_the_number_of_rows_saves_the_other_files(
    tmp_path: Path, fetched, card: str, files: int
) -> None:
    """Without validation rows, 90/10 by seed needs to know how many rows there are."""
    train, _ = many_files(tmp_path, card).training_splits()
    rows = [item.row["instruction"] for item in islice(train(), 5) if isinstance(item, Located)]
    assert len(fetched) == files
    whole = open_source(hub_level(str(tmp_path)), "hub").training_splits()[0]
    texts = [item.row["instruction"] for item in whole() if isinstance(item, Located)]
    assert rows == texts[:5]


def test_a_card_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    train, _ = many_files(tmp_path, CARD.replace("60", "50")).training_splits()
    with pytest.raises(UserError, match="60 rows now, 50 were expected"):
        list(train())


def test_a_hub_file_that_vanishes_is_told(tmp_path: Path) -> None:
    source = many_files(tmp_path, CARD)
    (tmp_path / "data" / "train-1.jsonl").unlink()
    with pytest.raises(UserError, match=r"train-1.jsonl cannot be had from the Hub") as error:
        list(source.training_splits()[0]())
    assert "\n" not in str(error.value)


def test_no_hub_names_the_other_ways() -> None:
    with pytest.raises(UserError, match=r"cannot be had.*--data PATH.*--data sample") as error:
        open_source(hub_level("someone/dolly-that-is-not-cached"), "hub")
    assert "\n" not in str(error.value)
