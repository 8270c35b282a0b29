"""The built-in Japanese rows: clean text, right answers, and validation that can be answered."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.datasets.test_sample import both_splits, rows_of
from tools.samples.facts_ja import RELATIONS, fact_questions
from tools.samples.words_ja import GROUPS, kanji_number

CATEGORIES = {
    "open_qa",
    "general_qa",
    "classification",
    "closed_qa",
    "brainstorming",
    "information_extraction",
    "summarization",
    "creative_writing",
}
WITH_INPUT = {"closed_qa", "information_extraction", "summarization"}
ENGLISH = re.compile(r"(?<=「)[a-z ]+(?=」)")
"""The only text in Latin letters: an English word in quotes."""


def test_every_category_is_in_both_splits() -> None:
    for split in ("train", "validation"):
        assert {row["category"] for row in rows_of("dolly_ja", split)} == CATEGORIES


def test_no_question_is_asked_twice_or_in_both_splits() -> None:
    asked = [(row["instruction"], row["input"]) for row in both_splits("dolly_ja")]
    assert len(set(asked)) == len(asked)


def test_texts_are_polite_japanese_without_stray_characters() -> None:
    for row in both_splits("dolly_ja"):
        for field in ("instruction", "input", "output"):
            text = row[field]
            assert text == text.strip()
            assert not re.search(r"[{}|;,.?!:_\n\u3000]", text), text
            assert not re.search(r"[A-Za-z]", ENGLISH.sub("", text)), text
            assert not re.search(r"。。|、、|？。|さんさん|です。です", text), text
            if " " in ENGLISH.sub("", text):
                assert field == "output", row
                assert "俳句" in row["instruction"], row
        assert "？" in row["instruction"] or "。" in row["instruction"], row
        if "俳句" not in row["instruction"]:
            polite = r"(です|ます|でした|ました|なさい|ください|ましょう|ように|一日を|さん)[。？]$"
            assert re.search(rf"{polite}|ましょうか？$|でしたか？$|します。$", row["output"]), row


def test_haiku_have_three_parts_and_the_word_asked_for() -> None:
    found = [row for row in both_splits("dolly_ja") if "俳句" in row["instruction"]]
    poems = {row["output"] for row in found if row["category"] == "creative_writing"}
    assert len(poems) > 10
    assert all(len(poem.split(" ")) == 3 for poem in poems)


def test_rows_without_need_of_an_input_have_none() -> None:
    for row in both_splits("dolly_ja"):
        assert bool(row["input"]) == (row["category"] in WITH_INPUT)


def test_answers_about_a_text_are_in_the_text() -> None:
    closed = [row for row in both_splits("dolly_ja") if row["category"] == "closed_qa"]
    for row in closed:
        known = row["input"] + row["instruction"]
        # Runs of kanji, katakana or digits are what an answer names.
        for named in re.findall(r"[\u4e00-\u9fff々]+|[\u30a0-\u30ff]+|\d+", row["output"]):
            # 白い in the text is 白 in the answer; verbs keep their first character.
            assert named in known or named[0] in known, row
    listed = [row for row in both_splits("dolly_ja") if row["category"] == "information_extraction"]
    for row in listed:
        (items,) = re.findall(r"は(.+)です。$", row["output"])
        assert all(item in row["input"] for item in re.split("[と、]", items)), row


def test_every_fact_that_validation_asks_for_is_taught() -> None:
    """Held out are ways to ask; what is asked stands in training in other words."""
    taught = [
        row["instruction"] + row["output"]
        for row in rows_of("dolly_ja", "train")
        if row["category"] == "open_qa"
    ]
    for relation in RELATIONS:
        for fact in relation.facts:
            for value in fact[1:]:
                assert any(fact[0] in text and value in text for text in taught), fact
    known = dict(fact_questions())
    for row in rows_of("dolly_ja", "validation"):
        if row["category"] == "open_qa":
            assert known[row["instruction"]] == row["output"]


def test_every_character_of_validation_is_in_training() -> None:
    texts = {
        split: "".join(
            row["instruction"] + row["input"] + row["output"] for row in rows_of("dolly_ja", split)
        )
        for split in ("train", "validation")
    }
    assert set(texts["validation"]) <= set(texts["train"])


def test_calculations_are_right() -> None:
    signs: dict[str, Callable[[int, int], int]] = {
        "足す": lambda a, b: a + b,
        "引く": lambda a, b: a - b,
        "掛ける": lambda a, b: a * b,
    }
    numbers = {kanji_number(n): n for n in range(100)} | {str(n): n for n in range(100)}
    assert (numbers["十"], numbers["二十五"], numbers["九十九"]) == (10, 25, 99)
    calculated = counted = compared = 0
    for row in both_splits("dolly_ja"):
        answer = row["output"]
        if match := re.fullmatch(r"(.+?)(足す|引く|掛ける)(.+)は(.+)です。", answer):
            first, sign, second, result = match.groups()
            assert signs[sign](numbers[first], numbers[second]) == numbers[result], row
            assert row["instruction"].startswith(f"{first}{sign}{second}"), row
            calculated += 1
        elif re.match("全部で|残りは", answer):
            first, second = map(int, re.findall(r"\d+", row["instruction"]))
            more = answer.startswith("全部で")
            assert int(re.findall(r"\d+", answer)[0]) == first + (second if more else -second), row
            counted += 1
        elif match := re.fullmatch(r"(\d+)のほうが(大きい|小さい)です。", answer):
            choose = max if match[2] == "大きい" else min
            assert int(match[1]) == choose(map(int, re.findall(r"\d+", row["instruction"]))), row
            compared += 1
    assert calculated > 300
    assert counted > 200
    assert compared > 50


def test_words_are_of_one_kind_alone() -> None:
    words = [word for group in GROUPS for word in group.words]
    assert len(set(words)) == len(words)
    kinds = {word: group.kind for group in GROUPS for word in group.words}
    found = 0
    for row in both_splits("dolly_ja"):
        match = re.fullmatch(r"(?:はい、|いいえ、)?(\w+)は(\w+)です。", row["output"])
        if row["category"] == "classification" and match and match[1] in kinds:
            assert kinds[match[1]] == match[2], row
            found += 1
    assert found > 400
