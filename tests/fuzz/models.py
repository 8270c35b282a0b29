"""Targets of everything a model is read from: checkpoints and their parts, sessions, exports."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newllm.chat import session_file
from newllm.data.tokenizers import BPE, load_tokenizer
from newllm.inference.sampling import Sampling
from newllm.model.counts import cpu
from newllm.model.counts.table import MOST_CONTEXT, CountTable, StoredTable
from newllm.report.tables import checkpoint_facts, facts_table
from newllm.train import checkpoint
from newllm.trained import TrainedModel
from tests.fuzz.common import FOLDER, Target, one_line, refusing

_VOCABULARY = 300


def tiny(**changes: Any) -> TrainedModel:
    """A model that was never trained, without a table of bigrams unless it is wanted."""
    from tests.serve.serving import tiny_model

    return tiny_model(num_layers=1, **{"pair_rows": 0, **changes})


def _stored(model: TrainedModel, **changes: Any) -> bytes:
    """A checkpoint as a run leaves it."""
    from tests.untrained import save_model

    epoch = {"epoch": 1, "epochs": 1, "ppl": 1.5, "loss": 0.4, "accuracy": 0.5, "bpb": 1.0}
    path = FOLDER / "seed.pt"
    save_model(model, path, epoch)
    content = checkpoint.load(path)
    content["data"]["accounting"] = {"train": {"documents": 1, "tokens": 1}}
    content |= changes
    checkpoint.save(path, {k: v for k, v in content.items() if not k.startswith("format")})
    return path.read_bytes()


_FACTS = {"file": "a.py", "class": "Mine", "sha256": "0" * 64, "state_bytes": 64}


def _checkpoint_seeds() -> list[bytes]:
    """Without and with recall and counts, and with a block of one's own."""
    plain, full = tiny(recall_slots=0, counts=0), tiny()
    own = {**plain.settings.model_dump(), "architecture": "a.py:Mine"}
    return [_stored(plain), _stored(full), _stored(plain, settings=own, block=_FACTS)]


def _load(path: Path) -> None:
    """As every command does, and as `newllm info` tells of it."""
    facts_table(checkpoint_facts(str(path)))
    TrainedModel.load(path, "cpu")


def sealed(content: bytes) -> bytes:
    """With a seal that is right, as an enemy can make one."""
    end = content.rfind(b"PK\x05\x06")
    if end < 0 or len(content) < end + 22:
        return content
    body = content[: end + 20] + b"\x4e\x00" + b"NEWLLM-SHA256:"
    return body + hashlib.sha256(body).hexdigest().encode()


def _checkpoint() -> tuple[Target, list[bytes]]:
    return refusing(_load, "a.pt"), _checkpoint_seeds()


def _checkpoint_sealed() -> tuple[Target, list[bytes]]:
    target = refusing(_load, "a.pt")
    return lambda content: target(sealed(content)), _checkpoint_seeds()


def _records() -> tuple[Target, list[bytes]]:
    """The plain values of a checkpoint, as JSON: settings, metrics, data, tokenizer, block.

    Of the archive nothing is left to guess, so that every input reaches what reads the values.
    """
    path = FOLDER / "values.pt"
    seeds, kept = [], []
    for number, seed in enumerate(_checkpoint_seeds()):
        path.write_bytes(seed)
        content = checkpoint.load(path)
        kept.append(content["model"])
        seeds.append(bytes([number]) + json.dumps(_without_tensors(content)).encode())

    def target(content: bytes) -> None:
        try:
            values = json.loads(content[1:])
        except (ValueError, RecursionError):
            return
        if not isinstance(values, dict):
            return
        weights = kept[content[0] % len(kept)]
        values |= {"format": checkpoint.FORMAT, "model": weights}
        buffer = io.BytesIO()
        try:
            torch.save(values, buffer)
        except RecursionError:
            return
        path.write_bytes(sealed(buffer.getvalue()))
        refuse(path)

    def refuse(path: Path) -> None:
        with one_line():
            _load(path)

    return target, seeds


def _without_tensors(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "model"}


def _counts() -> tuple[Target, list[bytes]]:
    """The table of counts of a checkpoint, and what reads from it; the kernel checks no bounds."""
    full = tiny().model.state_dict()[checkpoint.COUNTS]
    small = StoredTable(
        np.array([1, 2, 3], "<u2"), np.array([5, 6, 7, 8], "<u2"),
        np.array([1, 0, 1, 0, 1, 0, 0, 0], np.uint8), np.array([1, 2, 1], np.uint8),
        np.array([10, 128, 255], np.uint8), np.array([0, 0, 9, 0], np.uint8),
    )  # fmt: skip
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, _VOCABULARY, (1, 64)))
    targets = ids.roll(-1)[0]
    recent = torch.zeros(MOST_CONTEXT + 1, 1, dtype=torch.int64)

    def target(content: bytes) -> None:
        packed = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        try:
            checkpoint.check_counts(packed, _VOCABULARY)
        except ValueError:
            return
        table = CountTable(StoredTable.unpack(packed.numpy(), _VOCABULARY))
        if not len(table):
            return
        found, _ = cpu.contexts(table, ids, None, None, None, recent)
        chances = cpu.followed(table, found[0], targets)
        assert bool(((chances >= 0) & (chances <= 1.0001)).all())
        sums = np.add.reduceat(table.probability, table.first[:-1]) + table.rest
        assert np.allclose(sums, 1, atol=1e-4), "a distribution that does not sum to one"

    return target, [full.numpy().tobytes(), small.pack().tobytes()]


def _counts_sized() -> tuple[Target, list[bytes]]:
    """A table whose sizes are right, whatever the enemy wrote into its parts."""
    plain, seeds = _counts()

    def target(content: bytes) -> None:
        sets, contexts = (content[0] % 8 + 1, content[1] % 64) if len(content) > 2 else (1, 0)
        body = content[2:]
        rest = len(body) - MOST_CONTEXT * sets - 4 * contexts
        if rest < 0:
            return
        followers = rest // 3
        end = MOST_CONTEXT * sets + 4 * contexts + 3 * followers
        plain(struct.pack("<3I", sets, contexts, followers) + body[:end])

    small = seeds[1]
    return target, [bytes([1, 3]) + small[12:]]


def _sessions() -> tuple[Target, Target, list[bytes]]:
    model = tiny()
    chat = model.chat(Sampling(seed=1))
    chat.say("hello", 5)
    seed = session_file.encode(chat.dialogue, model.model, model.renderer)
    mark = session_file.model_fingerprint(model.model, model.renderer)

    def decode(content: bytes) -> None:
        with one_line():
            session_file.decode(content, model.model, model.renderer, "x.session", mark)

    def resealed(content: bytes) -> None:
        decode(content + hashlib.sha256(content).digest())

    return decode, resealed, [seed]


def _session() -> tuple[Target, list[bytes]]:
    plain, _, seeds = _sessions()
    return plain, seeds


def _session_sealed() -> tuple[Target, list[bytes]]:
    _, resealed, seeds = _sessions()
    return resealed, [seeds[0][:-32]]


def _imported() -> tuple[Target, list[bytes]]:
    """One file of an exported folder is the enemy's; the first byte says which."""
    from newllm.export.hf_import import import_hf
    from tests.fuzz.exported import write_folder

    folder, output = write_folder(FOLDER), FOLDER / "imported.pt"
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    good = {name: (folder / name).read_bytes() for name in names}

    def target(content: bytes) -> None:
        name = names[content[0] % 3] if content else names[0]
        (folder / name).write_bytes(content[1:])
        output.unlink(missing_ok=True)
        try:
            with one_line():
                import_hf(folder, output)
        finally:
            (folder / name).write_bytes(good[name])

    return target, [bytes([number]) + good[name] for number, name in enumerate(names)]


def _tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    (ids,) = tokenizer.encode_batch(["What comes after 3? \u4f60\ud800"])
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(range(tokenizer.vocab_size))


def _tokenizers() -> tuple[Target, list[bytes]]:
    trained = json.dumps(BPE.train(["abc abd"], 300).to_dict()).encode()
    words = b'{"kind": "word1000", "words": ["a", "b"]}'
    return refusing(_tokenizer, "tokenizer.json"), [trained, words]


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    "tokenizer": _tokenizers,
    "checkpoint": _checkpoint,
    "checkpoint-sealed": _checkpoint_sealed,
    "checkpoint-values": _records,
    "counts": _counts,
    "counts-sized": _counts_sized,
    "session": _session,
    "session-sealed": _session_sealed,
    "import": _imported,
}
