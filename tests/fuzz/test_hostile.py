"""Inputs that once did harm, or that fuzzing would rarely find."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from newllm.config import read_yaml
from newllm.data import json_rows
from newllm.data.layout import find_rows
from newllm.data.located import Located, Malformed
from newllm.data.rows import read_file
from newllm.data.tokenizers import BPE, load_tokenizer
from newllm.datasets.conversations import turns_conversation
from newllm.errors import UserError
from newllm.report.tables import checkpoint_facts, facts_table
from newllm.train import checkpoint
from newllm.trained import TrainedModel
from tests.fuzz.models import sealed as _sealed
from tests.serve.serving import tiny_model
from tests.untrained import save_model


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nepochs: [*b, *b]",  # grows without end
        "epochs: 2001-99-99",
        "epochs: " + "[" * 10_000,
        "epochs: " + "9" * 5000,
        "epochs: !!python/object/apply:os.getcwd []",
        "? [a]\n: b",
        "x" * 2**20 + "y",
    ],
)
def test_settings(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(file)


def test_a_message_without_content_but_with_another_field() -> None:
    with pytest.raises(ValueError, match="message 1: no 'role' and 'content' among"):
        turns_conversation([{"role": "user", " content": "q"}], "messages")


def test_lines_and_arrays_larger_than_memory(tmp_path: Path, monkeypatch) -> None:
    """A small .gz may hold them; they are counted as malformed, and other lines are read."""
    monkeypatch.setattr(json_rows, "LARGEST_LINE", 100)
    monkeypatch.setattr(json_rows, "LARGEST_WHOLE", 1000)
    row = b'{"text": "t"}\n'
    lines = tmp_path / "a.jsonl.gz"
    long = b'{"text": "' + b"x" * 1000 + b'"}\n'
    lines.write_bytes(gzip.compress(row + long + row + long))
    assert [type(item) for item in read_file(lines)] == [Located, Malformed, Located, Malformed]
    array = tmp_path / "b.json.gz"
    array.write_bytes(gzip.compress(b"[" + b"1," * 1000 + b"1]"))
    (item,) = read_file(array)
    assert isinstance(item, Malformed)
    assert "write one row a line" in item.reason


def test_a_large_array_in_one_line_is_no_long_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_rows, "LARGEST_LINE", 100)
    array = tmp_path / "a.json"
    array.write_text(json.dumps([{"text": "t"}] * 50))
    assert [type(item) for item in read_file(array)] == [Located] * 50


def test_a_number_over_several_lines_and_a_parquet_name_that_is_no_text(tmp_path: Path) -> None:
    number, table = tmp_path / "a.json", tmp_path / "a.parquet"
    number.write_text("[\n0][0]\n0 1\n")
    assert all(isinstance(item, Malformed) for item in read_file(number))
    number.write_bytes(b"0\0\n")
    assert all(isinstance(item, Malformed) for item in read_file(number))
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["q"]}), table)
    table.write_bytes(table.read_bytes().replace(b"instruction", b"instr\xa3ction"))
    (item,) = read_file(table)
    assert isinstance(item, Malformed)


@pytest.mark.parametrize("name", [b"rows/train.jsonl", b"x"])
@pytest.mark.parametrize("with_", [b"", b"\xe2\x28\xa1"])
def test_archives_of_files_without_a_name_or_one_that_is_no_text(
    name: bytes, with_: bytes, tmp_path: Path
) -> None:
    """Both sizes of names in the central directory follow; bit 11 says UTF-8."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("n" * len(name))
        entry.flag_bits = 0x800
        archive.writestr(entry, b"{}")
    content = bytearray(path.read_bytes())
    central, old = content.rfind(b"PK\x01\x02"), len(name)
    content[central + 28 : central + 30] = len(with_).to_bytes(2, "little")
    content[central + 8 : central + 10] = (0x800).to_bytes(2, "little")
    content[central + 46 : central + 46 + old] = with_
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (end - central).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"a\.zip: (a damaged zip archive|no rows)") as refused:
        find_rows(path, {}, ())
    assert len(str(refused.value).splitlines()) == 1


def test_an_arrow_file_whose_offsets_point_outside(tmp_path: Path) -> None:
    """pyarrow follows them without a look, and the process dies of it."""
    path, buffer = tmp_path / "a.arrow", io.BytesIO()
    table = pyarrow.table({"text": ["abc", "defgh"]})
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 3, 8))
    content = buffer.getvalue()
    assert content.count(offsets) == 1
    wrong = b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 2**31 - 1))
    path.write_bytes(content.replace(offsets, wrong))
    (item,) = read_file(path)
    assert isinstance(item, Malformed)
    assert "unreadable from here on" in item.reason


def test_complaints_quote_what_breaks_lines(tmp_path: Path) -> None:
    file = tmp_path / "a\nnewllm: all is well\x1b[2J\u2028.yaml"
    with pytest.raises(UserError) as refused:
        read_yaml(file)
    assert len(str(refused.value).splitlines()) == 1
    assert r"a\x0anewllm: all is well\x1b[2J\u2028.yaml" in str(refused.value)


@pytest.mark.parametrize("metrics", [{}, {"epoch": 1, "epochs": 1, "ppl": "x"}])
def test_what_a_checkpoint_says_of_its_training(metrics: dict[str, Any], tmp_path: Path) -> None:
    path = save_model(tiny_model(num_layers=1), tmp_path / "a.pt", metrics)
    with pytest.raises(UserError, match="damaged or edited"):
        facts_table(checkpoint_facts(path))


def _definition(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    stored = BPE.train(["abc abd"], 300).to_dict()
    definition = json.loads(stored["definition"])
    change(definition)
    return {**stored, "definition": json.dumps(definition)}


@pytest.mark.parametrize(
    "stored",
    [
        [],
        {"kind": "word1000", "words": [1, 2]},
        {"kind": "word1000", "words": ["a"] * 10_000},
        {"kind": "other", "definition": "{}"},
        _definition(lambda d: d["model"]["vocab"].update(far=10**9)),
        _definition(lambda d: d["model"]["vocab"].pop("a")),
        _definition(lambda d: d["model"]["merges"].append(["zz", "yy"])),
        _definition(lambda d: d["model"].update(type="WordPiece")),
        _definition(lambda d: d.update(normalizer={"type": "Lowercase"})),
        _definition(lambda d: d.update(pre_tokenizer=None)),
        _definition(lambda d: d["model"].update(dropout=float("nan"))),
    ],
)
def test_tokenizers(stored: object, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match="not a tokenizer file"):
        load_tokenizer(file)


def test_a_checkpoint_whose_tokenizer_the_library_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_model(tiny_model(num_layers=1), path)
    content = checkpoint.load(path)
    definition = json.loads(content["tokenizer"]["definition"])
    definition["model"]["dropout"] = float("nan")  # JSON of Python's, of nobody else
    content["tokenizer"]["definition"] = json.dumps(definition)
    checkpoint.save(path, {k: v for k, v in content.items() if not k.startswith("format")})
    with pytest.raises(UserError, match="damaged or edited"):
        TrainedModel.load(path, "cpu")


def _larger(content: dict[str, Any]) -> None:
    content["settings"].update(num_layers=128, context_dim=16384, hidden_dim=65536)


@pytest.mark.parametrize(
    "change",
    [
        _larger,
        lambda c: c.pop("settings"),
        lambda c: c.update(tokenizer={"kind": "bpe"}),
        lambda c: c["model"].pop(next(iter(c["model"]))),
        lambda c: c["model"].update(more=torch.zeros(1)),
        lambda c: c["model"].update(norm=torch.zeros(1).expand(10**12)),
        lambda c: c.update(metrics=None),
    ],
)
def test_checkpoints_whose_parts_do_not_fit(change, tmp_path: Path) -> None:
    """Well sealed, and refused before anything of their sizes is allocated."""
    path = tmp_path / "a.pt"
    save_model(tiny_model(num_layers=1), path)
    content = checkpoint.load(path)
    change(content)
    checkpoint.save(path, {k: v for k, v in content.items() if not k.startswith("format")})
    with pytest.raises(UserError, match="damaged or edited"):
        TrainedModel.load(path, "cpu")


def test_compressed_checkpoints_and_other_globals(tmp_path: Path) -> None:
    """Torch would unpack gigabytes from kilobytes, and make a bytearray of any size."""
    path = tmp_path / "a.pt"
    save_model(tiny_model(num_layers=1), path)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    large = io.BytesIO()
    torch.save({"format": "new-llm", "format_version": 2, "kind": bytearray(9)}, large)
    for content in (packed.getvalue(), large.getvalue()):
        path.write_bytes(_sealed(content))
        with pytest.raises(UserError, match="damaged, or not a New-LLM checkpoint"):
            checkpoint.load(path)
