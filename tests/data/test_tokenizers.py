"""word1000 exactly as published; BPE lossless for any text, special tokens out of reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.tokenizers import BPE, Word1000, fingerprint, from_dict, replace_surrogates

TRAINING_TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\n    indented = True\n",
    "def add(a, b):\n\treturn a + b  # 12345 + 67890\n",
    "Größe, naïve, 日本語のテキスト, emoji 🦊, $\\boxed{\\frac{1}{2}}$",
] * 20


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.train(TRAINING_TEXTS, vocab_size=400)


@given(st.text())
def test_bpe_is_lossless(bpe: BPE, text: str) -> None:
    clean, _ = replace_surrogates(text)
    ids = bpe.encode_batch([text])[0]
    assert bpe.decode(ids) == clean
    assert b"".join(map(bpe.piece, ids)) == clean.encode()
    assert all(len(bpe.special) <= token < bpe.vocab_size for token in ids)


@pytest.mark.parametrize("text", ["a\r\nb\r", "\x00\x01", "  \t \n\n ", "ﬁ ﷽ e\u0301", "x" * 5000])
def test_bpe_keeps_every_character(bpe: BPE, text: str) -> None:
    assert bpe.decode(bpe.encode_batch([text])[0]) == text


@pytest.mark.parametrize("special", BPE.special)
def test_special_tokens_in_user_text_stay_text(bpe: BPE, special: str) -> None:
    ids = bpe.encode_batch([f"say {special} now"])[0]
    assert min(ids) >= len(bpe.special)
    assert bpe.decode(ids) == f"say {special} now"
    assert all(bpe.special_name(token) is None for token in ids)


def test_lone_surrogates_are_replaced_and_counted(bpe: BPE) -> None:
    assert replace_surrogates("a\ud800b\udfffc") == ("a\ufffdb\ufffdc", 2)
    assert replace_surrogates("a😀b") == ("a😀b", 0)
    assert bpe.decode(bpe.encode_batch(["a\ud800b"])[0]) == "a\ufffdb"


def test_digits_stand_alone(bpe: BPE) -> None:
    assert len(bpe.encode_batch(["12345"])[0]) == 5


def test_words_begin_with_their_letter_where_there_is_room() -> None:
    few = BPE.train(["hello world"], 400)
    for text in (" Kaito", " zebra"):
        first = few.encode_batch([text])[0][0]
        assert few.piece(first) == text[:2].encode()
    assert few.decode(few.encode_batch([" Kaito zZ"])[0]) == " Kaito zZ"
    assert BPE.train(["hello world"], 270).vocab_size == 270, "more than was asked for"


def test_bpe_survives_storage(bpe: BPE) -> None:
    copy = from_dict(bpe.to_dict())
    assert copy.encode_batch(TRAINING_TEXTS[:3]) == bpe.encode_batch(TRAINING_TEXTS[:3])
    assert fingerprint(copy) == fingerprint(bpe)
    assert fingerprint(BPE.train(TRAINING_TEXTS, 300)) != fingerprint(bpe)


def test_word1000_ids_follow_count_then_first_appearance() -> None:
    tokenizer = Word1000.train(["b a A c", "c  d\ta"])
    # a: 3, c: 2, then b and d once each, b seen first.
    assert tokenizer.words == ["a", "c", "b", "d"]
    assert tokenizer.encode_batch(["D a zebra B"]) == [[7, 4, 1, 6]]
    assert (tokenizer.bos, tokenizer.end, tokenizer.unk) == (2, 3, 1)
    assert tokenizer.vocab_size == 1000


def test_word1000_keeps_996_words() -> None:
    text = " ".join(f"w{i}" for i in range(2000)) + " w1999"
    tokenizer = Word1000.train([text])
    assert len(tokenizer.words) == 996
    assert tokenizer.words[:2] == ["w1999", "w0"]
    assert tokenizer.encode_batch(["w994 w995 w1999"]) == [[999, 1, 4]]


def test_word1000_text_round_trip() -> None:
    tokenizer = Word1000.train(["the cat sat"])
    ids = tokenizer.encode_batch(["The Cat flew"])[0]
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.end]) == "the cat <UNK>"
    assert fingerprint(from_dict(tokenizer.to_dict())) == fingerprint(tokenizer)
