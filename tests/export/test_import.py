"""What comes back is what went; what is no export of ours is refused; and `--push`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from newllm.cli import main
from newllm.errors import UserError
from newllm.export.folder import push
from newllm.train import checkpoint
from newllm.trained import TrainedModel
from tests.export.conftest import Save


def test_it_comes_back_equal(folder: Path, trained: TrainedModel, tmp_path: Path, capsys) -> None:
    output = tmp_path / "back.pt"
    assert main(["import", str(folder), "-o", str(output)]) == 0
    assert f"{output}: {trained.size}." in capsys.readouterr().out
    ours, back = checkpoint.load(trained.path), checkpoint.load(output)
    weights, returned = ours.pop("model"), back.pop("model")
    assert back == ours
    assert returned.keys() == weights.keys()
    assert all(torch.equal(returned[name], weights[name]) for name in weights)
    assert main(["import", str(folder), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_folder_of_an_earlier_format_comes_back(folder: Path, tmp_path: Path) -> None:
    old, output = tmp_path / "old", tmp_path / "back.pt"
    shutil.copytree(folder, old)
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    assert config["record"].pop("format_version") == checkpoint.FORMAT_VERSION
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(old / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "read_bias" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, old / "model.safetensors", {"format": "pt"})
    assert main(["import", str(old), "-o", str(output)]) == 0
    for name, tensor in checkpoint.load(output)["model"].items():
        expected = 0 * tensor if "read_bias" in name else weights[f"model.{name}"]
        assert torch.equal(tensor, expected)


def test_the_card_tells_the_record(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| 1.5000 | 1.2500 | 2.000 | 50.00% |" in card
    assert "CC BY-SA 3.0" in card
    assert "nowhere" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_folders_in_use_and_other_models_are_refused(
    folder: Path, trained: TrainedModel, save: Save, tmp_path: Path, capsys
) -> None:
    assert main(["export", str(trained.path), "-o", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    gru = save(tmp_path / "gru.pt", architecture="gru", embed_dim=16, hidden_dim=16)
    assert main(["export", str(gru.path), "-o", str(tmp_path / "gru")]) == 2
    complaint = capsys.readouterr().err
    assert "the architecture is gru, and only context" in complaint
    assert len(complaint.splitlines()) == 1
    assert not (tmp_path / "gru").exists()


def _write(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _weights(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return rewrite


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "tokenizer.save_pretrained writes it",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "max_shard_size="),
        (_write("config.json", "{"), "not the config"),
        (_write("config.json", "[" * 100_000), "not the config"),
        (_config(record=None), "not the config"),
        (_config(model_type="llama"), "not the config"),
        (_config(num_layers=10**9), "num_layers"),
        (_config(context_dim=16384, embed_dim=16384), "ask for"),
        (_write("tokenizer.json", "{}"), "not the tokenizer"),
        (_write("tokenizer.json", "[" * 100_000), "not the tokenizer"),
        (_cut, "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "damaged"),
        (_weights(lambda w: w.pop("model.norm")), "model.norm is missing"),
        (_weights(lambda w: w.update(x=torch.ones(1))), "nothing of this name"),
        (_weights(lambda w: w["model.norm"].fill_(torch.nan)), "no weights"),
        (_weights(lambda w: w.update({"model.norm": torch.ones(24, dtype=torch.int64)})), "no wei"),
    ],
)
def test_what_is_no_export_of_ours_gets_one_line(
    folder: Path, tmp_path: Path, damage: Any, complaint: str, capsys
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    (copied / "modeling_new_llm.py").write_text("raise SystemExit('code of the folder ran')")
    damage(copied)
    assert main(["import", str(copied), "-o", str(tmp_path / "x.pt")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "x.pt").exists()


class StandIn:
    """A Hub in a folder."""

    def __init__(self, place: Path, broken: Exception | None = None) -> None:
        self.place, self.broken, self.private = place, broken, None

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        from huggingface_hub import RepoUrl

        if self.broken:
            raise self.broken
        assert exist_ok
        self.private = private
        return RepoUrl(f"http://localhost/{repo_id}", endpoint="http://localhost")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.place / repo_id)


def test_a_push_takes_everything(folder: Path, tmp_path: Path) -> None:
    hub = StandIn(tmp_path)
    assert push(folder, "me/model", hub=hub) == "http://localhost/me/model"
    assert hub.private
    sent = {path.name for path in (tmp_path / "me/model").iterdir()}
    assert sent == {path.name for path in folder.iterdir()}
    client_error = type("ConnectError", (Exception,), {"__module__": "httpx2._exceptions"})
    for broken in (ConnectionError("no route\nto the hub"), client_error("no route to the hub")):
        with pytest.raises(UserError, match=r"--push me/model: no route to the hub \(the folder"):
            push(folder, "me/model", hub=StandIn(tmp_path, broken))
    with pytest.raises(ZeroDivisionError):  # a fault of ours stays one
        push(folder, "me/model", hub=StandIn(tmp_path, ZeroDivisionError()))


def test_without_a_connection_the_folder_stays(trained: TrainedModel, tmp_path: Path, capsys):
    output = tmp_path / "kept"
    assert main(["export", str(trained.path), "-o", str(output), "--push", "me/model"]) == 2
    assert "is complete" in capsys.readouterr().err
    assert (output / "model.safetensors").is_file()
    assert main(["export", str(trained.path), "-o", str(output), "--public"]) == 2
