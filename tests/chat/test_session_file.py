"""Saved conversations: go on as if nothing had happened; anything else is refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import newllm
from newllm.chat import session_file
from newllm.chat.dialogue import TRANSCRIPT_BYTES, UNDO_TURNS, Dialogue
from newllm.chat.session import ChatSession
from newllm.data.render import ProtocolRenderer
from newllm.data.tokenizers import Word1000
from newllm.datasets import DATASETS
from newllm.errors import UserError
from newllm.inference.decoder import Stream, make_decoder
from newllm.inference.sampling import Sampling
from newllm.model import build_model
from newllm.model.recall.reference import in_sets
from newllm.model.spec import SPECS
from tests.untrained import count_something

ONE_SLOT = Path(__file__).parent.parent / "compatibility/one_slot"
SAMPLINGS = [Sampling(0), Sampling(1.0, 0.95, seed=3), Sampling(1.2, 1.0, None, 1.3)]


def same(first: ChatSession, second: ChatSession) -> None:
    a, b = first.dialogue, second.dialogue
    assert a.transcript == b.transcript
    assert a.next_turn.rng_state == b.next_turn.rng_state
    assert a.next_turn.snapshot.tokens_read == b.next_turn.snapshot.tokens_read
    states = a.next_turn.snapshot.state, b.next_turn.snapshot.state
    assert states[0] is not None
    assert states[1] is not None
    assert all(torch.equal(part, states[1][name]) for name, part in states[0].items())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("limit", [3, 60])
def test_go_on_after_loading_is_never_having_stopped(
    model, renderer, sampling, limit, tmp_path
) -> None:
    session = ChatSession(make_decoder(model), renderer, sampling, system="Be brief.")
    path = tmp_path / "a.session"
    for turn in ("hello", "and 你好?", "bye"):
        session.say(turn, limit)
        session.save(path)
        loaded = ChatSession.load(path, make_decoder(model), renderer)
        same(session, loaded)
        # Both go on; the loaded one goes first.
        texts = [other.say("more", limit) for other in (loaded, session)]
        assert texts[0] == texts[1]
        same(session, loaded)


def test_a_file_from_before_recall_had_sets(
    renderer, tiny_model_settings, tmp_path, monkeypatch
) -> None:
    """The same bytes under another shape: they are moved to where they are looked up now."""
    model = build_model(tiny_model_settings(recall_slots=64), renderer.tokenizer.vocab_size).eval()
    session = ChatSession(make_decoder(model), renderer, Sampling(temperature=0))
    session.say("hello, hello, hello", 5)
    path = tmp_path / "old.session"
    before = session_file._layout_before_sets(model)
    assert {name: shape for name, _, shape in before}["recall"] == [4, 1, 64]
    with monkeypatch.context() as patch:
        patch.setattr(session_file, "arrays", lambda model: session_file._named(before))
        session.save(path)
    loaded = ChatSession.load(path, make_decoder(model), renderer)
    old, new = (each.dialogue.next_turn.snapshot.state or {} for each in (session, loaded))
    assert not torch.equal(new["recall"], old["recall"])
    assert torch.equal(new["recall"], in_sets(old["recall"].flatten(2)))
    assert all(torch.equal(part, old[name]) for name, part in new.items() if name != "recall")
    assert loaded.say("and now?", 5)


def test_a_conversation_of_then_knows_what_was_said() -> None:
    """Saved when a context had one slot: in its set is what reading the same anew puts there."""
    model = newllm.load(str(ONE_SLOT / "model.pt"), "cpu")
    old = model.resume_chat(ONE_SLOT / "talk.session")
    new = model.chat(old.dialogue.sampling)
    assert new.say("abc.", 4) == old.transcript[-1]["content"]
    states = [each.dialogue.next_turn.snapshot.state or {} for each in (old, new)]
    then, now = (state["recall"][:, 0].flatten(0, 1) for state in states)
    assert (then > 0).sum() > 25
    for had, has in zip(then.tolist(), now.tolist(), strict=True):
        assert {*had} <= {*has, 0}


@pytest.mark.parametrize(
    ("architecture", "recall_slots", "counts"),
    [
        *((name, 0, 0) for name in SPECS),
        *((name, 64, 20_000) for name, spec in SPECS.items() if spec.has_recall),
    ],
)
def test_every_architecture_has_sessions(
    architecture, recall_slots, counts, renderer, tiny_model_settings, tmp_path
) -> None:
    torch.manual_seed(0)
    changes = {"context_dim": 16, "embed_dim": 16, "hidden_dim": 16, "counts": counts}
    changes["recall_slots"] = recall_slots
    settings = tiny_model_settings(architecture=architecture, **changes)
    model = build_model(settings, renderer.tokenizer.vocab_size).eval().requires_grad_(False)
    count_something(model)
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=1))
    session.say("hello", 5)
    session.save(tmp_path / "a.session")
    loaded = ChatSession.load(tmp_path / "a.session", make_decoder(model), renderer)
    assert loaded.say("and?", 5) == session.say("and?", 5)
    same(session, loaded)


def test_a_turn_from_a_saved_state_equals_reading_everything(
    model, renderer, tmp_path, read
) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=2))
    session.say("hello", 30)
    session.save(tmp_path / "a.session")
    loaded = ChatSession.load(tmp_path / "a.session", make_decoder(model), renderer).dialogue
    ids = loaded.prompt(renderer, "a question of many tokens?")
    decoder = make_decoder(model)
    stream, again = Stream(decoder, loaded.next_turn.snapshot), read.again(decoder)
    stream.read(ids)
    again.read(ids)
    assert again.tokens_read == stream.tokens_read > 30
    assert again.logits is not None
    assert stream.logits is not None
    np.testing.assert_allclose(again.logits, stream.logits, rtol=1e-4, atol=1e-4)


def test_undo_and_fork_are_exact(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(1.0, 0.95, seed=8))
    session.say("one", 9)
    fork = session.fork()
    same(session, fork)
    state = session.dialogue.next_turn.snapshot.state
    assert state is not None
    kept = {name: part.clone() for name, part in state.items()}
    first = session.say("two", 9)
    session.undo()
    same(session, fork)
    assert session.say("two", 9) == first == fork.say("two", 9)
    fork.undo()
    fork.say("something else", 9)
    fork.undo()
    state = fork.dialogue.next_turn.snapshot.state
    assert state is not None
    assert all(torch.equal(part, state[name]) for name, part in kept.items())
    fork.undo()
    assert not fork.dialogue.begun
    assert fork.transcript == []
    with pytest.raises(UserError, match="no turn to undo"):
        fork.undo()


def test_without_a_seed_a_second_try_is_another(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(2.0, 1.0))
    answers = set()
    for _ in range(3):
        answers.add(session.say("hello", 20, 20))
        session.undo()
    assert len(answers) == 3


def test_files_are_small_and_stay_so(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=1))
    session.say("hello", 20)
    small = len(session_file.encode(session.dialogue, model, renderer))
    assert small < session.state_bytes + 2000
    for _ in range(3 * UNDO_TURNS):
        session.say("many words " * 500, 5)
    dialogue = session.dialogue
    assert len(dialogue.past_turns) == UNDO_TURNS
    content = session_file.encode(dialogue, model, renderer)
    assert len(content) < small + TRANSCRIPT_BYTES + 2000
    assert dialogue.dropped > 0
    assert dialogue.next_turn.messages == 2 * (3 * UNDO_TURNS + 1)
    size = session_file.largest_file(model)
    everything = session_file.encode(dialogue, model, renderer, undo=True)
    assert len(content) < len(everything) < size
    loaded = session_file.decode(everything, model, renderer, "x")
    for _ in range(UNDO_TURNS):
        loaded.undo()
    assert loaded.next_turn.messages == dialogue.next_turn.messages - 2 * UNDO_TURNS
    assert loaded.transcript == dialogue.transcript[: len(loaded.transcript)]


def content_of(model, renderer) -> bytes:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=1))
    session.say("hello", 5)
    return session_file.encode(session.dialogue, model, renderer)


@given(data=st.data())
def test_any_damage_is_refused(model, renderer, data) -> None:
    content = content_of(model, renderer)
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), content[:place], content + b"\0"):
        with pytest.raises(UserError) as error:
            session_file.decode(bad, model, renderer, "x.session")
        assert "x.session" in str(error.value)
        assert "\n" not in str(error.value)


def edited(content: bytes, change) -> bytes:
    """A file whose header was changed by someone who knows how to seal it."""
    start = len(session_file.MAGIC) + 4
    size = int.from_bytes(content[start - 4 : start], "little")
    header = json.loads(content[start : start + size])
    change(header)
    text = json.dumps(header).encode()
    body = session_file.MAGIC + len(text).to_bytes(4, "little") + text + content[start + size : -32]
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["places"][0].update(tokens_read=-1),
        lambda h: h["places"][0].update(tokens_read=0),
        lambda h: h["places"][0].update(last_token=10**6),
        lambda h: h["places"][0].update(last_token=None),
        lambda h: h["places"][0]["draws"].update(state=2**128),
        lambda h: h["places"][0]["draws"].update(state="1"),
        lambda h: h["places"].extend(h["places"] * 20),
        lambda h: h.update(places=[]),
        lambda h: h["arrays"][0].__setitem__(2, [1, 1, 10**12]),
        lambda h: h["arrays"][0].__setitem__(1, "object"),
        lambda h: h["sampling"].update(temperature=-1.0),
        lambda h: h["sampling"].update(top_p=float("nan")),
        lambda h: h["transcript"].append({"role": "tool", "content": ""}),
        lambda h: h["transcript"].extend(h["transcript"] * 5),
        lambda h: h.update(code="import os"),
    ],
)
def test_edited_values_are_refused(model, renderer, change) -> None:
    content = content_of(model, renderer)
    assert session_file.decode(edited(content, lambda h: None), model, renderer, "x").begun
    with pytest.raises(UserError, match="damaged or edited"):
        session_file.decode(edited(content, change), model, renderer, "x")


def test_numbers_that_no_state_has_are_refused(model, renderer) -> None:
    content = content_of(model, renderer)[:-32]
    end = len(content)
    for part in reversed(model.initial_state(1).values()):
        bad = bytearray(content)
        bad[end - 4 : end] = b"\xff" * 4  # NaN, or -1
        end -= part.numel() * part.element_size()
        with pytest.raises(UserError, match="damaged or edited"):
            session_file.decode(bytes(bad) + hashlib.sha256(bad).digest(), model, renderer, "x")


def test_other_files_and_models_are_refused(model, renderer, tiny_model_settings, tmp_path) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(content_of(model, renderer))
    torch.manual_seed(2)
    other = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size).eval()
    with pytest.raises(UserError, match="with another model"):
        ChatSession.load(path, make_decoder(other), renderer)
    with pytest.raises(UserError, match="no such session file"):
        ChatSession.load(tmp_path / "none", make_decoder(model), renderer)
    with pytest.raises(UserError, match="cannot be read"):
        ChatSession.load(tmp_path, make_decoder(model), renderer)
    path.write_bytes(b"PK\x03\x04 a checkpoint")
    with pytest.raises(UserError, match="not a New-LLM session"):
        ChatSession.load(path, make_decoder(model), renderer)


def test_a_fingerprint_knows_the_weights_and_the_form_of_prompts(
    model, renderer, tiny_model_settings
) -> None:
    first = session_file.model_fingerprint(model, renderer)
    assert session_file.model_fingerprint(model, renderer) == first
    with torch.no_grad():
        model.norm[0] += 1e-6
    assert session_file.model_fingerprint(model, renderer) != first
    words = Word1000.train(["the cat sat on the mat"])
    prints = {
        session_file.model_fingerprint(
            build_model(tiny_model_settings(), 1000), ProtocolRenderer(words, DATASETS[name], 64)
        )
        for name in ("dolly", "hh_rlhf")
    }
    assert len(prints) == 2


def test_export_is_a_row_to_train_on(model, renderer, tmp_path) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(0), system="Be brief.")
    session.say("hello", 8, 8)
    session.export(tmp_path / "a.jsonl")
    (line,) = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert DATASETS["chat"].conversation(json.loads(line)) == session.transcript


def test_lone_surrogates_and_long_system_messages(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(0), system="a\ud800")
    session.say("b\udfff", 4)
    assert session.transcript[1]["content"] == "b\ufffd"
    assert session_file.encode(session.dialogue, model, renderer)
    with pytest.raises(UserError, match="system message"):
        Dialogue(Sampling(), "x" * (TRANSCRIPT_BYTES + 1))


def test_a_full_disk_leaves_the_old_file(model, renderer, tmp_path, monkeypatch) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(0))
    session.say("hello", 4)
    path: Path = tmp_path / "a.session"
    session.save(path)
    before = path.read_bytes()
    session.say("more", 4)
    monkeypatch.setattr("newllm.files.os.fsync", _full)
    with pytest.raises(OSError, match="No space"):
        session.save(path)
    assert path.read_bytes() == before


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")
