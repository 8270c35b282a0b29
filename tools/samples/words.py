"""Groups of everyday words that belong together: animals, fruits, jobs and so on."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tools.samples.phrases import DAYS, MONTHS, Word, plural


@dataclass(frozen=True)
class WordGroup:
    """Words of one kind; countable ones take an article and have a plural."""

    kind: Word
    words: tuple[Word, ...]
    countable: bool = True

    def one(self, word: Word) -> str:
        """The word as it stands in a sentence."""
        return f"{word:a}" if self.countable else word

    def many(self, word: Word) -> str:
        """The word in the plural where it has one."""
        return plural(word) if self.countable else word


def group(kind: str, words: str, countable: bool = True) -> WordGroup:
    """A group from its words in one line."""
    return WordGroup(Word(kind), tuple(Word(word) for word in words.split()), countable)


ANIMALS = group(
    "animal",
    "dog cat cow horse sheep pig duck hen lion frog bee bird spider fish camel elephant rabbit "
    "bear monkey ant",
)
PETS = group("pet", "dog cat horse rabbit bird fish duck")
FRUITS = group("fruit", "apple pear banana orange lemon cherry grape plum peach melon berry")
VEGETABLES = group("vegetable", "carrot potato onion bean cabbage pea")
COLOURS = group("colour", "red blue green yellow black white brown grey", countable=False)
CLOTHES = group("piece of clothing", "shirt coat hat shoe sock dress scarf glove")
TOOLS = group("tool", "hammer saw needle spade broom brush ladder axe")
FURNITURE = group("piece of furniture", "table chair bed desk lamp shelf")
VEHICLES = group("vehicle", "car bus train bike ship plane boat")
INSTRUMENTS = group("instrument", "piano guitar drum violin flute trumpet")
JOBS = group(
    "worker",
    "baker doctor teacher farmer pilot cook sailor painter gardener driver singer writer",
)
DRINKS = group("drink", "water milk tea coffee juice wine", countable=False)
MATERIALS = group("material", "glass wood metal paper wool cotton gold stone", countable=False)
CITIES = group(
    "city",
    "Paris Tokyo Madrid Cairo Rome Berlin London Lima Lisbon Athens Stockholm Oslo",
    countable=False,
)
COUNTRIES = group(
    "country",
    "France Japan Spain Egypt Italy China Germany Kenya England Peru Greece Norway",
    countable=False,
)
WEEKDAYS = group("day", " ".join(DAYS), countable=False)
CALENDAR = group("month", " ".join(MONTHS), countable=False)

GROUPS = (
    ANIMALS,
    FRUITS,
    VEGETABLES,
    COLOURS,
    CLOTHES,
    TOOLS,
    FURNITURE,
    VEHICLES,
    INSTRUMENTS,
    JOBS,
    DRINKS,
    MATERIALS,
    CITIES,
    COUNTRIES,
    WEEKDAYS,
    CALENDAR,
)
FOODS = (FRUITS, VEGETABLES)


def two_groups(rng: Random) -> tuple[WordGroup, WordGroup]:
    """Two different groups."""
    first, second = rng.sample(GROUPS, 2)
    return first, second
