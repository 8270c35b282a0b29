"""Short invented texts about people, shops, towns and trips, and what can be asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tools.samples.phrases import (
    DAYS,
    MONTHS,
    NUMBER_WORDS,
    PEOPLE,
    Word,
    join_words,
    sentence_case,
    two_people,
    words_in,
)
from tools.samples.words import (
    CITIES,
    COLOURS,
    DRINKS,
    FOODS,
    FRUITS,
    INSTRUMENTS,
    JOBS,
    PETS,
)

TOWNS = words_in("Oakford Redhill Westbury Riverton Lakeside Millbrook Norwick Greenfield")
STREETS = words_in("Green Market Station River Church Garden Bridge School")
PLACES = words_in("market park school station museum garden theatre beach")
GOODS = words_in("bread cheese books flowers shoes clothes fish clocks")
RIDES = words_in("bus car train bike boat")
SETTINGS = ("by the sea", "on a river", "in the hills", "near a forest", "by a lake")


@dataclass(frozen=True)
class Passage:
    """A text with questions and answers, a summary, and the items it contains by their kind."""

    text: str
    questions: tuple[tuple[str, str], ...]
    summary: str
    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Detail:
    """One thing a passage says: as a sentence, as questions and as a part of the summary."""

    sentence: str
    questions: tuple[tuple[str, str], ...]
    clause: str


def calendar_date(rng: Random) -> str:
    """A day of the year such as "3 May"."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def person_passage(rng: Random) -> Passage:
    """A person with a job, a home, a pet and other attributes."""
    person = rng.choice(PEOPLE)
    name, she, her = person.name, person.subject, person.possessive
    job, city, pet = rng.choice(JOBS.words), rng.choice(CITIES.words), rng.choice(PETS.words)
    colour, instrument = rng.choice(COLOURS.words), rng.choice(INSTRUMENTS.words)
    food, age = rng.choice(rng.choice(FOODS).words), rng.randint(20, 40)
    details = (
        Detail(
            rng.choice((f"{she:c} is {job:a}.", f"{she:c} works as {job:a}.")),
            (
                (f"What is the job of {name}?", f"{name} is {job:a}."),
                (f"What does {name} work as?", f"{name} works as {job:a}."),
            ),
            f"is {job:a}",
        ),
        Detail(
            rng.choice((f"{she:c} lives in {city}.", f"{her:c} home is in {city}.")),
            (
                (f"Where does {name} live?", f"{name} lives in {city}."),
                (f"In which city is the home of {name}?", f"The home of {name} is in {city}."),
            ),
            f"lives in {city}",
        ),
        Detail(
            f"{she:c} is {age} years old.",
            (
                (f"How old is {name}?", f"{name} is {age} years old."),
                (f"What is the age of {name}?", f"{name} is {age} years old."),
            ),
            f"is {age} years old",
        ),
        Detail(
            f"{she:c} has a {colour} {pet}.",
            (
                (f"What pet does {name} have?", f"{name} has {pet:a}."),
                (f"Which animal does {name} have?", f"{name} has {pet:a}."),
                (f"What colour is the {pet} of {name}?", f"The {pet} of {name} is {colour}."),
            ),
            f"has {pet:a}",
        ),
        Detail(
            rng.choice((f"{she:c} likes {food:s}.", f"{she:c} likes to eat {food:s}.")),
            (
                (f"What does {name} like?", f"{name} likes {food:s}."),
                (f"What does {name} like to eat?", f"{name} likes to eat {food:s}."),
            ),
            f"likes {food:s}",
        ),
        Detail(
            f"{she:c} plays the {instrument}.",
            (
                (f"What does {name} play?", f"{name} plays the {instrument}."),
                (f"Which instrument does {name} play?", f"{name} plays the {instrument}."),
            ),
            f"plays the {instrument}",
        ),
    )
    told = rng.sample(details, rng.randint(3, 4))
    first = told[0].sentence.replace(f"{she:c} ", f"{name} ", 1)
    first = first.replace(f"{her:c} home", f"The home of {name}", 1)
    return Passage(
        " ".join([first, *(detail.sentence for detail in told[1:])]),
        tuple(question for detail in told for question in detail.questions),
        f"{name} {join_words([detail.clause for detail in told])}.",
        (("name", (name,)),),
    )


def pair_passage(rng: Random) -> Passage:
    """Two people with the same kinds of attributes, which are not to be mixed up."""
    first, second = (person.name for person in two_people(rng))
    pets, drinks = rng.sample(PETS.words, 2), rng.sample(DRINKS.words, 2)
    cities = rng.sample(CITIES.words, 2)
    shapes = (
        ("has", "have", [f"{pet:a}" for pet in pets], "What pet"),
        ("likes", "like", list(drinks), "What drink"),
        ("lives in", "live in", list(cities), "Which city"),
    )
    told = rng.sample(shapes, 2)
    sentences, questions = [], []
    for verb, plain, values, asked in told:
        sentences.append(f"{first} {verb} {values[0]} and {second} {verb} {values[1]}.")
        for name, value in zip((first, second), values, strict=True):
            ask = f"{asked} does {name} {plain}?"
            questions.append((ask, f"{name} {verb} {value}."))
            questions.append((f"Who {verb} {value}?", f"{name} {verb} {value}."))
    clauses = [
        f"{name} {join_words([f'{verb} {values[column]}' for verb, _, values, _ in told])}"
        for column, name in enumerate((first, second))
    ]
    return Passage(
        " ".join(sentences),
        tuple(questions),
        f"{clauses[0]}, while {clauses[1]}.",
        (("name", (first, second)),),
    )


def shop_passage(rng: Random) -> Passage:
    """A shop with an owner, a street, goods and opening hours."""
    owner, street, goods = rng.choice(PEOPLE).name, rng.choice(STREETS), rng.choice(GOODS)
    opens, closes = rng.randint(6, 10), rng.randint(4, 9)
    opening, closing = NUMBER_WORDS[opens], NUMBER_WORDS[closes]
    free = rng.choice(DAYS)
    text = (
        f"{owner} has a shop in {street} Street. The shop sells {goods}. "
        f"It opens at {opening} and closes at {closing}. It is closed on {free}."
    )
    return Passage(
        text,
        (
            ("Who has the shop?", f"{owner} has the shop."),
            ("Where is the shop?", f"The shop is in {street} Street."),
            (f"In which street is the shop of {owner}?", f"The shop is in {street} Street."),
            ("What does the shop sell?", f"The shop sells {goods}."),
            (f"What can I buy in the shop of {owner}?", f"You can buy {goods} in the shop."),
            ("When does the shop open?", f"The shop opens at {opening}."),
            ("When does the shop close?", f"The shop closes at {closing}."),
            ("On which day is the shop closed?", f"The shop is closed on {free}."),
        ),
        f"{owner} sells {goods} in {street} Street from {opening} to {closing}, but not on {free}.",
        (("name", (owner,)), ("day", (free,)), ("number", (opening, closing))),
    )


def town_passage(rng: Random) -> Passage:
    """A small town with its setting, bridges, goods and market day."""
    town, setting, goods = rng.choice(TOWNS), rng.choice(SETTINGS), rng.choice(GOODS)
    bridges, market = rng.choice(NUMBER_WORDS[2:10]), rng.choice(DAYS)
    size = rng.choice(("small", "big", "old", "quiet"))
    return Passage(
        f"{town} is {Word(size):a} town {setting}. It has {bridges} bridges. "
        f"{town} is known for its {goods}. There is a market on {market}.",
        (
            (f"Where is {town}?", f"{town} is {setting}."),
            (f"What kind of town is {town}?", f"{town} is {Word(size):a} town."),
            (f"How many bridges does {town} have?", f"{town} has {bridges} bridges."),
            (f"What is {town} known for?", f"{town} is known for its {goods}."),
            (f"When is the market in {town}?", f"The market in {town} is on {market}."),
            (f"On which day is there a market in {town}?", f"There is a market on {market}."),
        ),
        f"{town}, {Word(size):a} town {setting}, has {bridges} bridges, a market on {market} "
        f"and good {goods}.",
        (("town", (town,)), ("day", (market,)), ("number", (bridges,))),
    )


def trip_passage(rng: Random) -> Passage:
    """A person goes somewhere, buys something and meets a friend."""
    person, friend = two_people(rng)
    name, she = person.name, person.subject
    place, vehicle = rng.choice(PLACES), rng.choice(RIDES)
    count, fruit = rng.choice(NUMBER_WORDS[2:10]), rng.choice(FRUITS.words)
    date, day = calendar_date(rng), rng.choice(DAYS)
    when, kind = rng.choice(((date, "date"), (day, "day")))
    where = f"went to the {place} by {vehicle}"
    opening = rng.choice((f"On {when} {name} {where}.", f"{name} {where} on {when}."))
    return Passage(
        f"{opening} {she:c} bought {count} {fruit:s}. There {she} met {friend.name}.",
        (
            (f"Where did {name} go?", f"{name} went to the {place}."),
            (f"How did {name} go to the {place}?", f"{name} went to the {place} by {vehicle}."),
            (f"When did {name} go to the {place}?", f"{name} went to the {place} on {when}."),
            (f"What did {name} buy?", f"{name} bought {count} {fruit:s}."),
            (f"How many {fruit:s} did {name} buy?", f"{name} bought {count} {fruit:s}."),
            (f"Who did {name} meet?", f"{name} met {friend.name}."),
            (f"Who went to the {place}?", f"{name} went to the {place}."),
        ),
        f"{name} {where} on {when}, bought {count} {fruit:s} and met {friend.name}.",
        (("name", (name, friend.name)), (kind, (when,)), ("number", (count,))),
    )


def meeting_passage(rng: Random) -> Passage:
    """Several people who did something on several days."""
    people = rng.sample(PEOPLE, 3)
    whens = [f"{rng.randint(1, 28)} {month}" for month in rng.sample(MONTHS, 2)]
    town, place = rng.choice(TOWNS), rng.choice(PLACES)
    names = [person.name for person in people]
    return Passage(
        f"{names[0]} came to {town} on {whens[0]}. {names[1]} and {names[2]} met "
        f"{people[0].objective} at the {place} on {whens[1]}.",
        (
            (f"When did {names[0]} come to {town}?", f"{names[0]} came to {town} on {whens[0]}."),
            (f"Where did {names[0]} come on {whens[0]}?", f"{names[0]} came to {town}."),
            (f"Who came to {town} on {whens[0]}?", f"{names[0]} came to {town}."),
            (
                f"Where did {names[1]} meet {names[0]}?",
                f"{names[1]} met {names[0]} at the {place}.",
            ),
            (f"Who met {names[0]}?", f"{names[1]} and {names[2]} met {names[0]}."),
        ),
        f"{join_words(names)} met at the {place} in {town} on {whens[1]}.",
        (("name", tuple(names)), ("date", tuple(whens)), ("town", (town,))),
    )


BUILDERS = (
    person_passage,
    person_passage,
    pair_passage,
    shop_passage,
    town_passage,
    trip_passage,
    meeting_passage,
)


def draw_passage(rng: Random) -> Passage:
    """A random passage of any kind."""
    return rng.choice(BUILDERS)(rng)


def list_items(kind: str, items: tuple[str, ...]) -> str:
    """The items of a kind as a sentence: "The names are Tom and Clara."."""
    noun, verb = (f"{kind}s", "are") if len(items) > 1 else (kind, "is")
    return sentence_case(f"the {noun} {verb} {join_words(items)}.")
