"""`newllm export --format onnx`: two graphs, a tokenizer, and what is needed to talk with them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from newllm import __version__
from newllm.chat import session_file
from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import never_written
from newllm.errors import UserError, require_packages
from newllm.export.folder import new_folder
from newllm.export.hf import TOLERANCE, exportable, our_logits, probe_ids, write_json
from newllm.export.hf_tokenizer import SPECIAL, chat_template, to_fast
from newllm.files import write_text
from newllm.model import ContextLM
from newllm.trained import TrainedModel

GRAPHS = ("step", "prefill")

PROBE_LENGTHS = (1, 63, 300)
"""Tokens that both are given to read before a file is kept."""


@dataclass(frozen=True)
class Difference:
    """How far a graph is from the model, over every prefix of the probes."""

    logits: float
    """Largest difference of logits, of values up to `largest`."""
    largest: float
    bits: float
    """Mean divergence of the next token's distribution, KL(model, graph), bits a token."""
    first_choice: float
    """Share of tokens where the likeliest one is the same, 0..1."""


def export_onnx(model: TrainedModel, folder: Path, int8: bool = False) -> Difference:
    """Write the folder, and compare it with the model in onnxruntime before it takes its name.

    Args:
        model: what is exported.
        folder: to write.
        int8: round the matrices to int8 (dynamic quantization); the difference is measured, not
            bounded.

    Raises:
        UserError: another architecture or tokenizer, a folder in use, a missing package, graphs
            that say something else.
    """
    require_packages("--format onnx", "onnx", "onnxruntime", extra="export")
    from newllm.export.onnx_graph import prefill_graph, step_graph

    tokenizer = exportable(model)
    inner = network_of(model)
    with new_folder(folder) as scratch:
        for name, make in zip(GRAPHS, (step_graph, prefill_graph), strict=True):
            graph = make(inner, own_head=int8)
            (scratch / f"{name}.onnx").write_bytes(graph.SerializeToString())
        exact = compare(scratch, inner)
        if not exact.logits <= TOLERANCE * max(1.0, exact.largest):
            raise UserError(
                f"the ONNX graphs' logits differ by {exact.logits:g} from the model's; "
                "nothing written"
            )
        if int8:
            _quantize(scratch)
        difference = compare(scratch, inner) if int8 else exact
        write_text(scratch / "tokenizer.json", to_fast(tokenizer).to_str())
        write_json(scratch / "new_llm.json", _facts(model, difference, int8))
    return difference


def network_of(model: TrainedModel) -> ContextLM:
    """What the graphs compute: the model without its table of counts."""
    assert isinstance(model.model, ContextLM)
    network = model.model.without_counts()
    assert isinstance(network, ContextLM)
    return network


def _facts(model: TrainedModel, difference: Difference, int8: bool) -> dict[str, Any]:
    """What a program needs besides the graphs."""
    tokenizer, renderer = model.tokenizer, model.renderer
    assert isinstance(renderer, ChatRenderer)
    state = {name: list(part.shape) for name, part in network_of(model).initial_state(1).items()}
    fingerprint = model.fingerprint
    if int8:  # its states differ, so it is another model to session files
        fingerprint = hashlib.sha256(f"{fingerprint} onnx int8".encode()).hexdigest()[:32]
    return {
        "format": "new-llm onnx",
        "name": model.path.stem,
        "newllm_version": __version__,
        "weights": "int8" if int8 else "fp32",
        "difference": asdict(difference),
        "parameters": model.parameters,
        "vocab_size": tokenizer.vocab_size,
        "state": state,
        "session": {"model": fingerprint, "arrays": session_file.arrays(model.model)},
        "special": dict(zip(("pad", "bos", "end", "system", "user", "assistant"), range(6),
                            strict=True)),
        "special_names": list(SPECIAL),
        "never_written": never_written(tokenizer),
        "chat_template": chat_template(renderer),
        "plain_text": renderer.plain_text,
        "record": {"settings": model.settings.model_dump(), "metrics": model.metrics,
                   "data": model.data, "versions": model.versions},
    }  # fmt: skip


def _quantize(folder: Path) -> None:
    """Every constant matrix to int8: of products by column, the embedding as a whole."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that our graphs do not need
    try:
        for name in GRAPHS:
            exact, rounded = folder / f"{name}.onnx", folder / f"{name}.int8"
            # Unsigned: signed ones overflow on CPUs with AVX2 alone, whose sums have 16 bits.
            quantize_dynamic(exact, rounded, weight_type=QuantType.QUInt8, per_channel=True,
                             op_types_to_quantize=["MatMul", "Gather"])  # fmt: skip
            rounded.replace(exact)
    finally:
        root.setLevel(level)


@torch.inference_mode()
def compare(folder: Path, model: ContextLM) -> Difference:
    """Let the model and both graphs read the same tokens.

    The first half of each probe goes through `prefill` in two parts, the rest token by token
    through `step`, as an answer does; the whole of it once more through `prefill` alone.
    """
    sessions = {name: open_graph(folder / f"{name}.onnx") for name in GRAPHS}
    found, expected = [], []
    for length in PROBE_LENGTHS:
        ids = probe_ids(model.vocab_size, length)
        ours = our_logits(model, ids)[0]
        numbers = ids.numpy()
        half = length // 2
        state = _zero_state(model)
        cuts = [0, half // 3, half] if half // 3 else [0, half] if half else [0]
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            said, state = read(sessions["prefill"], numbers[:, start:stop], state)
            found.append(said)
            expected.append(ours[stop - 1])
        answer = answer_logits(model, ids[:, :half], ids[:, half:])
        looked_up = state.get("recall")
        for place in range(half, length):
            said, state = read(sessions["step"], numbers[:, place], state, looked_up)
            found.append(said)
            expected.append(answer[place - half])
        found.append(read(sessions["prefill"], numbers, _zero_state(model))[0])
        expected.append(ours[-1])
    theirs, ours = torch.from_numpy(np.concatenate(found)), torch.stack(expected)
    divergence = F.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return Difference(
        logits=float((theirs - ours).abs().max()),
        largest=float(ours.abs().max()),
        bits=max(0.0, float(divergence)) / float(np.log(2)),
        first_choice=float((theirs.argmax(-1) == ours.argmax(-1)).float().mean()),
    )


def open_graph(path: Path) -> Any:
    """A graph in onnxruntime, on one core of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def read(
    session: Any,
    ids: np.ndarray,
    state: dict[str, np.ndarray],
    looked_up: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits after the last token [B, V], and the state, for ids [B] (step) or [B, T] (prefill).

    Args:
        session: a graph.
        ids: what is read.
        state: before it.
        looked_up: for `step`: the recall of the state that the answer began with, if it has one.
    """
    further = {} if looked_up is None else {"looked_up": looked_up}
    logits, *after = session.run(None, {"ids": ids, **state, **further})
    return logits, dict(zip(state, after, strict=True))


def answer_logits(model: ContextLM, prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Logits after each token of an answer [1, T], which recall does not look into: [T, V]."""
    device = next(model.parameters()).device
    _, state = model(prompt.to(device))
    if model.recall is not None:
        state["looked_up"] = state["recall"]
    hidden, _ = model(answer.to(device), state)
    return model.logits(hidden)[0].float().cpu()


def _zero_state(model: ContextLM) -> dict[str, np.ndarray]:
    return {name: part.cpu().numpy() for name, part in model.initial_state(1).items()}
