"""Tokenizer files with the same ids, in which a user cannot type a special token."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.tokenizers import BPE
from newllm.export.hf_tokenizer import MARK, SPECIAL, from_fast, to_fast

OURS = BPE.train(["What comes after 3? After 3 comes 4.", "<|user|> <|end|>"], 300)
FAST = to_fast(OURS)

anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK))
tricky = st.sampled_from(["<|user|>", "<|end|>", "  ", "\n", "12", "'ll", "\u0301", "\U0001f600"])


@given(st.lists(anything | tricky).map("".join))
def test_ids_are_ours(text: str) -> None:
    (ours,) = OURS.encode_batch([text])
    assert FAST.encode(text, add_special_tokens=False).ids == ours
    assert FAST.encode(text).ids == [OURS.bos, *ours]


def test_special_tokens_come_first_and_need_the_mark() -> None:
    assert [FAST.token_to_id(name) for name in SPECIAL] == list(range(6))
    assert FAST.get_vocab_size() == OURS.vocab_size
    assert FAST.encode(SPECIAL[4], add_special_tokens=False).ids == [4]
    assert 4 not in FAST.encode("<|user|>").ids
    assert all(MARK in name for name in SPECIAL)


def test_it_comes_back_equal() -> None:
    assert from_fast(FAST.to_str()).to_dict() == OURS.to_dict()


def test_it_comes_back_from_a_trainer_that_set_padding() -> None:
    changed = tokenizers.Tokenizer.from_str(FAST.to_str())
    changed.enable_padding(length=8)
    changed.enable_truncation(8)
    assert from_fast(changed.to_str()).to_dict() == OURS.to_dict()


def _changed(**changes: object) -> str:
    return json.dumps({**json.loads(FAST.to_str()), **changes})


def _more_tokens() -> str:
    more = tokenizers.Tokenizer.from_str(FAST.to_str())
    more.add_tokens(["extra"])
    return more.to_str()


def _with_gap() -> str:
    model = json.loads(FAST.to_str())["model"]
    model["vocab"]["zzz"] = 5000
    return _changed(model=model)


def _no_bytes() -> str:
    model = json.loads(FAST.to_str())["model"]
    model["vocab"]["\u3042"] = FAST.get_vocab_size()
    return _changed(model=model)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "not the file of a tokenizer"),
        ("{}", "not the file of a tokenizer"),
        (_changed(model={"type": "WordPiece", "vocab": {}}), "no BPE"),
        (_changed(added_tokens=[]), "special tokens"),
        (_changed(added_tokens=[1]), "not the file"),
        (_more_tokens(), "special tokens"),
        (_with_gap(), "gaps"),
        (_no_bytes(), "byte-level"),
        (_changed(pre_tokenizer={"type": "Nonsense"}), "byte-level"),
    ],
)
def test_others_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_fast(text)
