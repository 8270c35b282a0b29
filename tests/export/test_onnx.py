"""The ONNX graphs say what the model says, in onnxruntime, at any length and for any batch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
import torch

from newllm.cli import main
from newllm.export import onnx_folder, onnx_graph
from newllm.export.onnx_folder import GRAPHS, network_of, open_graph, read
from newllm.model import ContextLM
from newllm.train import checkpoint
from newllm.trained import TrainedModel
from tests.export.conftest import Save, random_ids


@pytest.fixture(scope="module")
def folder(trained: TrainedModel) -> Path:
    output = trained.path.with_name("onnx")
    assert main(["export", str(trained.path), "--format", "onnx", "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def graphs(folder: Path) -> dict[str, Any]:
    return {name: open_graph(folder / f"{name}.onnx") for name in GRAPHS}


def state(model: Any, sequences: int) -> dict[str, np.ndarray]:
    """Of sequences that have read something."""
    _, read_state = model(random_ids(model.vocab_size, sequences, 5))
    return {name: part.detach().numpy() for name, part in read_state.items()}


@pytest.mark.parametrize("length", [1, 2, 3, 63, 300])
def test_prefill_is_the_model(trained: TrainedModel, graphs: dict[str, Any], length: int) -> None:
    ids = random_ids(trained.tokenizer.vocab_size, 3, length)
    before = state(trained.model, 3)
    ours = {name: torch.from_numpy(part) for name, part in before.items()}
    hidden, after = trained.model(ids, ours)
    logits, theirs = read(graphs["prefill"], ids.numpy(), before)
    assert np.abs(logits - network_of(trained).logits(hidden[:, -1]).numpy()).max() < 1e-4
    for name, part in after.items():
        assert np.abs(theirs[name] - part.numpy()).max() < 1e-5


def test_steps_are_the_prefill(trained: TrainedModel, graphs: dict[str, Any]) -> None:
    """Steps are an answer: recall looks up what was read before it."""
    ids = random_ids(trained.tokenizer.vocab_size, 2, 63) % 9 + 6
    now = {name: part.numpy() for name, part in trained.model.initial_state(2).items()}
    _, now = read(graphs["prefill"], ids[:, :20].numpy(), now)
    before = {name: torch.from_numpy(part) for name, part in now.items()}
    hidden, _ = trained.model(ids[:, 20:], {**before, "looked_up": before["recall"]})
    expected = network_of(trained).logits(hidden).detach().numpy()
    looked_up = now["recall"]
    for place in range(20, 63):
        logits, now = read(graphs["step"], ids[:, place].numpy(), now, looked_up)
        assert np.abs(logits - expected[:, place - 20]).max() < 1e-4


def test_what_a_program_needs_is_beside_them(trained: TrainedModel, folder: Path) -> None:
    facts = json.loads((folder / "new_llm.json").read_text(encoding="utf-8"))
    assert facts["state"] == {
        "context": [2, 1, 16], "tail": [2, 1, 3, 16], "recall": [4, 1, 256, 4], "recent": [5, 1],
        "previous": [1, 1],
    }  # fmt: skip
    arrays = {name: (kind, shape) for name, kind, shape in facts["session"]["arrays"]}
    assert {name: shape for name, (_, shape) in arrays.items()} == facts["state"]
    kinds = ["float32", "float32", "int32", "int32", "int64"]
    assert [kind for kind, _ in arrays.values()] == kinds
    assert facts["session"]["model"] == trained.fingerprint
    assert facts["plain_text"] is False
    assert facts["special"]["assistant"] == 5
    assert facts["difference"]["logits"] < 1e-4
    assert facts["difference"]["first_choice"] == 1
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    (words,) = trained.tokenizer.encode_batch(["a river"])
    assert fast.encode("a river").ids == [facts["special"]["bos"], *words]


def test_int8_is_smaller_and_its_price_is_told(
    trained: TrainedModel, folder: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "int8"
    arguments = ["export", str(trained.path), "--format", "onnx", "--int8", "-o", str(output)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "likeliest token is the same for" in said
    assert "without the 0.0 MB of counts: what they reach so was not measured." in said
    found = json.loads((output / "new_llm.json").read_text(encoding="utf-8"))["difference"]
    assert 1e-3 < found["logits"] < 0.2 * found["largest"]
    assert 0 < found["bits"] < 0.05
    for name in GRAPHS:
        graph = onnx.load(output / f"{name}.onnx").graph
        matrices = [c for c in graph.initializer if len(c.dims) == 2 and c.dims[0] > 1]
        assert len(matrices) == 16  # five a layer, the embedding, two of the pairs, four of recall
        kinds = {c.data_type for c in matrices}
        assert kinds <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def test_what_is_reached_without_counts_is_told(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # nothing to compile
    content = checkpoint.load(trained.path)
    content["metrics"] |= {"bpb": 1.5, "loss": 2.0, "loss_without_counts": 2.2}
    file = tmp_path / "model.pt"
    checkpoint.save(file, content)
    assert main(["export", str(file), "--format", "onnx", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.endswith(
        "counts: on the validation rows they reach 1.6500 bits per byte, not 1.5000 bits per byte."
        "\n"
    )


def test_a_wrong_graph_is_not_kept(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    right = onnx_graph.prefill_graph

    def wrong(model: ContextLM, own_head: bool) -> onnx.ModelProto:
        graph = right(model, own_head)
        (scale,) = [c for c in graph.graph.initializer if c.name == "blocks.1.read_scale"]
        scale.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 1.2, np.float32), scale.name))
        return graph

    monkeypatch.setattr(onnx_graph, "prefill_graph", wrong)
    output = tmp_path / "out"
    assert main(["export", str(trained.path), "--format", "onnx", "-o", str(output)]) == 2
    assert "differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [8, 96, 128])
def test_groups_of_channels(
    save: Save, tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # nothing to compile
    model = save(tmp_path / "model.pt", context_dim=channels, num_layers=1)
    assert onnx_folder.export_onnx(model, tmp_path / "out").logits < 1e-4


def test_mistakes_get_one_line(trained: TrainedModel, save: Save, tmp_path: Path, capsys) -> None:
    place = ["-o", str(tmp_path / "out")]
    assert main(["export", str(trained.path), "--int8", *place]) == 2
    assert "--int8 belongs to --format onnx" in capsys.readouterr().err
    other = save(tmp_path / "original.pt", architecture="original")
    assert main(["export", str(other.path), "--format", "onnx", *place]) == 2
    assert "only context can be taken elsewhere" in capsys.readouterr().err


def test_the_guides_example_runs(
    folder: Path, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "EXPORT.md"
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    (example,) = [block for block in blocks if "onnxruntime" in block]
    (tmp_path / "my_model_onnx").symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    ids = torch.tensor([[1, 4, 40, 2, 5]])
    hidden, after = trained.model(ids)
    assert np.abs(names["logits"] - network_of(trained).logits(hidden[:, -1]).numpy()).max() < 1e-4
    assert {name: part.shape for name, part in names["state"].items()} == {
        name: tuple(part.shape) for name, part in after.items()
    }
