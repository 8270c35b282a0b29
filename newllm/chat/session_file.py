"""A conversation as a file: its state, its random numbers, its transcript; never code.

::

    "NEWLLM-SESSION 1\\n"
    size of the header, 4 bytes, little-endian
    header: JSON (UTF-8): the model's fingerprint, sampling, transcript, and which arrays follow
    arrays: the states, of each place that has one, little-endian, in the order of the header
    SHA-256 of all bytes before, 32 bytes

What is read is checked against the given model before anything is allocated for it. The digest
finds damage; it is no proof of who wrote the file, so every value is checked as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from newllm import __version__
from newllm.chat.dialogue import (
    MOST_COUNTED,
    TRANSCRIPT_BYTES,
    UNDO_TURNS,
    Dialogue,
    TurnStart,
    model_state_bytes,
)
from newllm.data.render import Renderer
from newllm.datasets.conversations import Conversation, Message
from newllm.errors import UserError
from newllm.inference.decoder import Snapshot
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel, State
from newllm.model.recall.reference import in_sets, possible_slots

MAGIC = b"NEWLLM-SESSION 1\n"
_SIZE_BYTES, _DIGEST_BYTES = 4, 32
_LARGEST_HEADER = 2**20

_Layout = list[tuple[str, np.dtype, list[int]]]

Count = Annotated[int, Field(ge=0, lt=2**62)]
_Length = Annotated[int, Field(ge=0, lt=MOST_COUNTED)]
_Wide = Annotated[int, Field(ge=0, lt=2**128)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RngState(_Part):
    state: _Wide
    inc: _Wide
    has_uint32: Annotated[int, Field(ge=0, le=1)]
    uinteger: Annotated[int, Field(ge=0, lt=2**32)]


class _TurnStart(_Part):
    tokens_read: _Length
    last_token: Count | None
    messages: _Length
    draws: _RngState | None


class _Sampling(_Part):
    temperature: float = Field(ge=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    seed: Count | None
    repetition_penalty: float = Field(ge=1, allow_inf_nan=False)
    top_k: Count = 0
    min_p: float = Field(0, ge=0, le=1)
    frequency_penalty: float = Field(0, allow_inf_nan=False)
    presence_penalty: float = Field(0, allow_inf_nan=False)


class _Message(_Part):
    role: Literal["system", "user", "assistant"]
    content: str


class _Header(_Part):
    newllm_version: str
    model: str
    arrays: list[tuple[str, str, list[int]]]
    """Name, dtype and shape of each part of a state."""
    places: list[_TurnStart] = Field(min_length=1, max_length=1 + UNDO_TURNS)
    """Where past turns started (they can be undone), the oldest first, and where the next does."""
    sampling: _Sampling
    system: str | None = Field(max_length=TRANSCRIPT_BYTES)
    transcript: list[_Message]


def model_fingerprint(model: LanguageModel, renderer: Renderer) -> str:
    """Differs whenever weights, tokenizer or the form of prompts do: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    shape = {**model.settings.model_dump(), "dropout": None}
    for later in ("recall_slots", "counts"):  # conversations with models from before there were any
        if not shape[later]:
            del shape[later]
    probe: list[Message] = [{"role": "user", "content": "a"}]
    for plain in (shape, renderer.tokenizer.to_dict(), renderer.prompt(probe)):
        digest.update(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


def encode(
    dialogue: Dialogue,
    model: LanguageModel,
    renderer: Renderer,
    fingerprint: str | None = None,
    undo: bool = False,
) -> bytes:
    """The content of a file.

    Args:
        dialogue: between two turns.
        model: which it is with.
        renderer: of the model.
        fingerprint: of the model, if known already.
        undo: keep where past turns started as well, each as large as the state.
    """
    turns = [*(dialogue.past_turns if undo else []), dialogue.next_turn]
    layout = _layout(model)
    header = {
        "newllm_version": __version__,
        "model": fingerprint or model_fingerprint(model, renderer),
        "arrays": arrays(model),
        "places": [
            {
                "tokens_read": turn.snapshot.tokens_read,
                "last_token": turn.snapshot.last_token,
                "messages": turn.messages,
                "draws": turn.rng_state,
            }
            for turn in turns
        ],
        "sampling": _stored(dialogue.sampling),
        "system": dialogue.system,
        "transcript": dialogue.transcript,
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content = bytearray(MAGIC + len(text).to_bytes(_SIZE_BYTES, "little") + text)
    for state in (turn.snapshot.state for turn in turns):
        for name, dtype, _ in layout if state else ():
            assert state is not None
            content += state[name].cpu().numpy().astype(dtype).tobytes()
    return bytes(content) + hashlib.sha256(content).digest()


def _stored(sampling: Sampling) -> dict[str, Any]:
    """Without what came after format 1 and asks for nothing: earlier programs read the rest."""
    later = ("top_k", "min_p", "frequency_penalty", "presence_penalty")
    return {name: x for name, x in asdict(sampling).items() if x or name not in later}


def read(
    path: Path, model: LanguageModel, renderer: Renderer, fingerprint: str | None = None
) -> Dialogue:
    """The conversation in a file.

    Raises:
        UserError: missing, damaged, edited, or of another model.
    """
    content = _content(path, largest_file(model) + 1)
    return decode(content, model, renderer, str(path), fingerprint)


@dataclass(frozen=True)
class Summary:
    """What the header of a file says of its conversation."""

    model: str
    """Fingerprint of the model it is with."""
    transcript: Conversation
    tokens_read: int
    messages: int
    undo_turns: int


def summary(path: Path) -> Summary:
    """What a file says of its conversation, without its states and without proof by the digest.

    Raises:
        UserError: missing, or its header is damaged.
    """
    header = _header(_content(path, len(MAGIC) + _SIZE_BYTES + _LARGEST_HEADER), str(path))
    last = header.places[-1]
    transcript: Conversation = [{"role": m.role, "content": m.content} for m in header.transcript]
    undo = len(header.places) - 1
    return Summary(header.model, transcript, last.tokens_read, last.messages, undo)


def model_of(content: bytes, where: str) -> str:
    """Fingerprint of the model that the content of a file is with.

    Raises:
        UserError: it has no header of a session file.
    """
    return _header(content, where).model


def _content(path: Path, most: int) -> bytes:
    """The first bytes of a file that is one: a named pipe would be waited for without end."""
    try:
        if not S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: cannot be read (not a regular file)")
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise UserError(f"{path}: no such session file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _damaged(where: str) -> UserError:
    return UserError(f"{where}: damaged or edited; use another copy of it")


def _header(content: bytes, where: str) -> _Header:
    """Raises UserError if the content does not begin with one."""
    if not content.startswith(MAGIC):
        raise UserError(f"{where}: not a New-LLM session (or one of another format version)")
    start = len(MAGIC) + _SIZE_BYTES
    size = int.from_bytes(content[len(MAGIC) : start], "little")
    try:
        return _Header.model_validate_json(content[start : start + size])
    except ValidationError:
        raise _damaged(where) from None


def largest_file(model: LanguageModel) -> int:
    """Bytes of a session file with this model at most."""
    states = (1 + UNDO_TURNS) * model_state_bytes(model)
    return len(MAGIC) + _SIZE_BYTES + _LARGEST_HEADER + states + _DIGEST_BYTES


def decode(
    content: bytes,
    model: LanguageModel,
    renderer: Renderer,
    where: str,
    fingerprint: str | None = None,
) -> Dialogue:
    """The conversation that :func:`encode` made the content of.

    Args:
        content: of the file.
        model: that is to go on with it.
        renderer: of the model.
        where: name of the file, for messages.
        fingerprint: of the model, if known already.

    Raises:
        UserError: damaged, edited, or of another model.
    """
    if not content.startswith(MAGIC):
        raise UserError(f"{where}: not a New-LLM session (or one of another format version)")
    damaged = _damaged(where)
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    start = len(MAGIC) + _SIZE_BYTES
    if len(content) > largest_file(model) or hashlib.sha256(body).digest() != digest:
        raise damaged
    size = int.from_bytes(body[len(MAGIC) : start], "little")
    header = _header(body, where)
    if header.model != (fingerprint or model_fingerprint(model, renderer)):
        raise UserError(
            f"{where}: this conversation was with another model (or other --weights); "
            "its state means nothing to this one"
        )
    layouts = _layout(model), _layout_before_sets(model)
    layout = next((each for each in layouts if header.arrays == _named(each)), None)
    if layout is None:
        raise damaged
    begun = sum(place.tokens_read > 0 for place in header.places)
    if len(body) != start + size + begun * model_state_bytes(model):
        raise damaged
    states = _states(body[start + size :], layout)
    try:
        return _dialogue(header, states, renderer.tokenizer.vocab_size)
    except ValueError:
        raise damaged from None


def _dialogue(header: _Header, states: Iterator[State], vocab_size: int) -> Dialogue:
    """Raises ValueError where values contradict each other or are none that a model writes."""
    turns = []
    for stored in header.places:
        state = next(states) if stored.tokens_read else None
        for name, part in (state or {}).items():
            if not bool(_possible(name, part, stored, vocab_size).all()):
                raise ValueError("numbers that no state has")
        begun = state is not None
        if begun != (stored.last_token is not None) or (stored.last_token or 0) >= vocab_size:
            raise ValueError("last token")
        rng_state = None if stored.draws is None else stored.draws.model_dump()
        snapshot = Snapshot(state, stored.last_token, stored.tokens_read)
        turns.append(TurnStart(snapshot, rng_state, stored.messages))
    if any(a.messages > b.messages for a, b in zip(turns[:-1], turns[1:], strict=True)):
        raise ValueError("messages")
    dialogue = Dialogue(Sampling(**header.sampling.model_dump()), header.system)
    *dialogue.past_turns, dialogue.next_turn = turns
    transcript: Conversation = [{"role": m.role, "content": m.content} for m in header.transcript]
    size = sum(len(message["content"].encode()) for message in transcript)
    if len(transcript) > dialogue.next_turn.messages or size > TRANSCRIPT_BYTES:
        raise ValueError("transcript")
    dialogue.transcript = transcript
    return dialogue


def _possible(name: str, part: torch.Tensor, stored: _TurnStart, vocab_size: int) -> torch.Tensor:
    """Whether a state can have these numbers: whole ones are tokens, or count them."""
    if part.is_floating_point():
        return part.isfinite()
    last = 0 if stored.last_token is None else stored.last_token + 1
    if name == "previous":
        return part == last
    if name == "recent":
        begun = torch.arange(len(part))[:, None] < stored.tokens_read
        return (part[0] == last) & ((part > 0) == begun) & (part >= 0) & (part <= vocab_size)
    if name == "recall":
        return possible_slots(part, vocab_size)
    return (part >= 0) & (part <= stored.tokens_read)


def arrays(model: LanguageModel) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each part of a state, as the header of a file has them."""
    return _named(_layout(model))


def _named(layout: _Layout) -> list[tuple[str, str, list[int]]]:
    return [(name, dtype.name, shape) for name, dtype, shape in layout]


def _layout(model: LanguageModel) -> _Layout:
    """Name, dtype and shape of each part of the state of one text."""
    parts = model.initial_state(1).items()
    return [
        (name, part.cpu().numpy().dtype.newbyteorder("<"), list(part.shape)) for name, part in parts
    ]


def _layout_before_sets(model: LanguageModel) -> _Layout:
    """Of files from before recall had sets of slots: the tables have another shape."""
    return [
        (name, dtype, [*shape[:2], shape[2] * shape[3]] if name == "recall" else shape)
        for name, dtype, shape in _layout(model)
    ]


def _states(content: bytes, layout: _Layout) -> Iterator[State]:
    """The states that lie one after the other."""
    at = 0
    while at < len(content):
        state = {}
        for name, dtype, shape in layout:
            count = int(np.prod(shape))
            array = np.frombuffer(content, dtype, count, at).reshape(shape)
            state[name] = torch.from_numpy(array.astype(dtype.newbyteorder("=")))
            at += count * dtype.itemsize
        if "recall" in state:
            state["recall"] = in_sets(state["recall"])
        yield state
