"""Helpers shared by the sample generators: seeding, the split rule and small pieces of English."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Row = dict[str, object]

SPLITS = ("train", "validation")
VALIDATION_DIVISOR = 9


def words_in(text: str) -> tuple[str, ...]:
    """The words of a text, parted by blanks."""
    return tuple(text.split())


NUMBER_WORDS = words_in(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
DAYS = words_in("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words_in(
    "January February March April May June July August September October November December"
)
IRREGULAR_PLURALS = {
    "child": "children",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "piece of clothing": "pieces of clothing",
    "piece of furniture": "pieces of furniture",
    "scarf": "scarves",
    "sheep": "sheep",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}


class Word(str):
    """A word that templates can inflect.

    `{word:a}` puts the article before it, `{word:s}` is the plural, `{word:c}` starts a sentence;
    `{word:A}` and `{word:S}` are the first two at the start of a sentence.
    """

    def __format__(self, spec: str) -> str:
        forms: dict[str, Callable[[str], str]] = {
            "": str,
            "a": with_article,
            "s": plural,
            "c": sentence_case,
        }
        text = forms[spec.lower()](str(self))
        return sentence_case(text) if spec.isupper() else text


@dataclass(frozen=True)
class Person:
    """A first name with the pronouns that go with it."""

    name: str
    subject: Word
    possessive: Word
    objective: Word


PEOPLE = tuple(
    Person(name, *map(Word, pronouns))
    for names, pronouns in (
        ("Anna Mara Lena Emma Nora Julia Rosa Clara", ("she", "her", "her")),
        ("Tom Ben Paul Max Leo Peter David Oscar", ("he", "his", "him")),
    )
    for name in names.split()
)


def generator(dataset: str, split: str, seed: int) -> Random:
    """A random generator that depends on nothing but the arguments."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return Random(f"{dataset}/{split}/{seed}")


def belongs_to(split: str, key: str) -> bool:
    """Whether the row with this key is of the split.

    The key alone decides, so a row can never be in both splits, whatever their seeds.
    """
    held_out = zlib.crc32(key.encode()) % VALIDATION_DIVISOR == 0
    return held_out == (split == "validation")


def distinct_rows(
    draw: Callable[[Random], Row],
    count: int,
    split: str,
    rng: Random,
    key: Callable[[Row], str],
) -> list[Row]:
    """Draw rows until `count` of the split with different keys are found."""
    found: dict[str, Row] = {}
    for _ in range(100 * VALIDATION_DIVISOR * max(count, 1)):
        if len(found) == count:
            return list(found.values())
        row = draw(rng)
        name = key(row)
        if name not in found and belongs_to(split, name):
            found[name] = row
    raise RuntimeError(f"only {len(found)} of {count} different rows could be drawn")


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    vowel = noun[0].lower() in "aeiou" or noun.startswith("hour")
    return f"{'an' if vowel else 'a'} {noun}"


def join_words(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def plural(noun: str) -> str:
    """The plural of a noun."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "sh", "ch", "x", "to")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def counted(count: int, noun: str) -> str:
    """A number in digits with the noun in the right form: "1 apple", "3 apples"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def two_people(rng: Random) -> tuple[Person, Person]:
    """Two different people."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second
