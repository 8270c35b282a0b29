"""One vocabulary for several data sets, from equal bytes of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newllm.cli import main
from newllm.data.prepare import _texts, train_joint_tokenizer
from newllm.data.sources import Source, open_source
from newllm.data.tokenizers import BPE, fingerprint, load_tokenizer, save_tokenizer
from newllm.datasets import find_dataset
from newllm.errors import UserError


def chat_source(folder: Path, texts: list[str]) -> Source:
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return open_source(find_dataset("chat"), str(folder))


def test_a_large_set_does_not_outweigh_a_small_one(tmp_path: Path, dolly_folder: Path) -> None:
    large = chat_source(tmp_path / "large", ["xyxyxyxy zwzwzwzw"] * 2000)
    small = open_source(find_dataset("dolly"), str(dolly_folder))
    tokenizer, bytes_of_each = train_joint_tokenizer({"chat": large, "dolly": small}, 300)
    small_bytes = sum(len(text.encode()) for text in _texts("dolly", small, 10**9))
    assert bytes_of_each == small_bytes
    pieces = {tokenizer.piece(token) for token in range(tokenizer.vocab_size)}
    assert any(b"After" in piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_texts_end_at_the_byte(tmp_path: Path, size: int) -> None:
    source = chat_source(tmp_path / "own", ["äöü äöü äöü"] * 9)
    taken = "".join(_texts("chat", source, size)).encode()
    assert size - 1 <= len(taken) <= size


def test_command_writes_what_train_reads(tmp_path: Path, dolly_folder: Path, capsys) -> None:
    file = tmp_path / "tokenizer.json"
    place = ["--data-dir", str(dolly_folder.parent), "--vocab-size", "320"]
    assert main(["tokenizer", "train", "--levels", "1", *place, "-o", str(file)]) == 0
    assert f"--tokenizer-file {file}" in capsys.readouterr().out
    tokenizer = load_tokenizer(file)
    assert tokenizer.vocab_size <= 320
    train = ["train", "dolly", "--data", str(dolly_folder), "--tokenizer-file", str(file)]
    sizes = ["--context-dim", "16", "--embed-dim", "16", "--hidden-dim", "16", "--epochs", "1"]
    assert main([*train, *sizes, "--out", str(tmp_path / "out")]) == 0
    from newllm.trained import TrainedModel

    model = TrainedModel.load(tmp_path / "out" / "best_new_llm_dolly_layers1_bpe.pt")
    assert fingerprint(model.tokenizer) == fingerprint(tokenizer)


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"kind": "bpe"}', '{"kind": "bpe", "definition": "x"}']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match="not a tokenizer file"):
        load_tokenizer(file)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    tokenizer = BPE.train(["one two three"], 300)
    save_tokenizer(tokenizer, tmp_path / "t.json")
    assert fingerprint(load_tokenizer(tmp_path / "t.json")) == fingerprint(tokenizer)
