"""Text of answers: whole characters, nothing taken back, nothing after a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.tokenizers import BPE, Word1000
from newllm.inference.answer_text import AnswerText

TOKENIZER = BPE.train(["some words"], 280)


def write(text: str, stop: list[str], trim: bool = True) -> tuple[list[str], AnswerText]:
    answer = AnswerText(TOKENIZER, stop, trim)
    pieces = [answer.add(token) for token in TOKENIZER.encode_batch([text])[0]]
    return [*pieces, answer.finish()], answer


@given(
    text=st.text(alphabet="ab é你\n😀", max_size=30),
    stop=st.lists(st.text(alphabet="ab é你", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(text, stop) -> None:
    pieces, answer = write(text, stop, trim=False)
    places = [place for place in map(text.find, stop) if place >= 0]
    wanted = text[: min(places)] if places else text
    assert "".join(pieces) == answer.text == wanted
    assert answer.stopped == bool(places)


@given(text=st.text(alphabet="ab é😀", max_size=20))
def test_pieces_come_as_soon_as_they_are_certain(text) -> None:
    pieces, answer = write(text, [])
    assert "".join(pieces) == text.lstrip() == answer.text
    assert "\ufffd" not in answer.text


def test_half_a_character_at_the_end() -> None:
    answer = AnswerText(TOKENIZER)
    (first, *_) = TOKENIZER.encode_batch(["é"])[0]
    assert answer.add(first) == ""
    assert answer.finish() == "\ufffd"


def test_what_was_said_is_read_again_as_its_tokens() -> None:
    _, answer = write("some words and stop here", ["stop"])
    assert TOKENIZER.decode(answer.tokens()) == "some words and "


@pytest.mark.parametrize(("trim", "wanted"), [(True, "cat sat"), (False, " cat sat")])
def test_words_have_blanks_before_them(trim: bool, wanted: str) -> None:
    words = Word1000.train(["cat sat"])
    answer = AnswerText(words, (), trim)
    assert "".join(answer.add(token) for token in words.encode_batch(["cat sat"])[0]) == wanted
