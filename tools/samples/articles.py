"""Invented articles: a title with an introduction and sections about towns, rivers, people, ships.

What an article says is drawn once and used in all its paragraphs, so they fit each other. Names
are put together from parts, and articles mention the names of others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.samples.phrases import MONTHS, NUMBER_WORDS, Word, words_in

TOWN_STARTS = words_in(
    "Alden Bram Cold Dun Elm Fern Grey Hazel Iver Kel Lang Marl North Oaken Pen Raven Salt Thorn"
)
TOWN_ENDS = words_in("bridge ford wick ham stead mouth mere bury dale")
RIVER_STARTS = words_in("Al Bren Cor Del Er Fal Ler Mor Nev Tav")
RIVER_ENDS = words_in("a en is ow")
FIRST_NAMES = (
    *((name, "he", "his") for name in words_in("Edmund Henry Walter Arthur Martin Simon Jonas")),
    *((name, "she", "her") for name in words_in("Agnes Martha Helen Edith Laura Cecily Ruth")),
)
LAST_NAMES = words_in(
    "Harrow Whitlock Marsh Penrose Holloway Carver Fenwick Thorne Ashby Lockwood Merrow Tillman"
)
SHIP_QUALITIES = words_in("Northern Silver Morning Proud Swift Distant Golden Silent Western Red")
SHIP_NOUNS = words_in("Star Heron Light Wind Queen Arrow Tide Falcon Hope Harbour")
TRADES = words_in("wool salt timber leather glass paper cheese grain")
LANDMARKS = ("market hall", "stone bridge", "old mill", "town gate", "clock tower", "brick church")
ARTS = (
    ("painter", "painting", "landscapes of the coast"),
    ("composer", "composition", "songs for small choirs"),
    ("writer", "novel", "stories about life in small towns"),
    ("architect", "building", "schools and libraries of red brick"),
    ("botanist", "book", "studies of plants that grow in wet ground"),
    ("engineer", "project", "bridges with wide iron arches"),
)
CARGOES = ("coal", "timber", "grain", "tea", "wool", "mail and passengers")


@dataclass(frozen=True)
class Article:
    """A title, an introduction and sections of a heading with paragraphs."""

    title: str
    introduction: str
    sections: tuple[tuple[str, tuple[str, ...]], ...]


def town_name(rng: Random) -> str:
    """The name of a town."""
    return rng.choice(TOWN_STARTS) + rng.choice(TOWN_ENDS)


def river_name(rng: Random) -> str:
    """The name of a river."""
    return rng.choice(RIVER_STARTS) + rng.choice(RIVER_ENDS)


def other_town(rng: Random, *known: str) -> str:
    """The name of a town that is none of the known ones."""
    while (name := town_name(rng)) in known:
        pass
    return name


def prose(text: str) -> str:
    """A text without the line breaks that it has in the source."""
    return " ".join(text.split())


def section(title: str, *paragraphs: str) -> tuple[str, tuple[str, ...]]:
    """A heading with its paragraphs."""
    return title, tuple(prose(paragraph) for paragraph in paragraphs)


def some(rng: Random, count: int, *sentences: str) -> str:
    """A few of the sentences in the given order, with a blank before each."""
    places = sorted(rng.sample(range(len(sentences)), count))
    return "".join(f" {sentences[place]}" for place in places)


def thousands(number: int) -> str:
    """A number with a comma before its last three digits."""
    return f"{number:,}"


def town_article(rng: Random) -> Article:
    """A town with its place, past and economy."""
    town, river = town_name(rng), river_name(rng)
    near = other_town(rng, town)
    far = other_town(rng, town, near)
    founded, trade, landmark = rng.randint(1050, 1350), rng.choice(TRADES), rng.choice(LANDMARKS)
    people, distance = rng.randint(2100, 38000), rng.randint(4, 30)
    direction = rng.choice(("north", "south", "east", "west"))
    railway, flood = rng.randint(1845, 1890), rng.randint(1600, 1780)
    built = rng.randint(1380, 1590)
    mayor = f"{rng.choice(FIRST_NAMES)[0]} {rng.choice(LAST_NAMES)}"
    new = rng.choice(("furniture", "bicycle", "clock", "shoe"))
    return Article(
        town,
        prose(f"""
            {town} is a town on the River {river}, about {distance} kilometres {direction} of
            {near}. At the last count it had {thousands(people)} inhabitants. The town is known for
            its {landmark} and for the {trade} trade, which made it rich in the Middle Ages.
            {rng.choice(("Every", "Each"))} {rng.choice(MONTHS)} a fair is held in the streets
            around the {landmark}.
        """)
        + some(
            rng,
            2,
            f"The local football club plays on a ground near the River {river}.",
            f"{town} has two schools and a small hospital.",
            f"Since {railway + 100} the town has been a partner of {far}.",
            f"Many of its inhabitants work in {near}.",
            f"The arms of {town} show a boat and a sack of {trade}.",
        ),
        (
            section(
                f"History of {town}",
                f"""The first record of {town} is a letter from {founded}, in which a market by
                the River {river} is mentioned. Merchants from {near} bought {trade} there and
                carried it down the river by boat. In {built} the {landmark} was built with
                money from the {trade} merchants. A flood in {flood} destroyed
                {rng.choice(("many", "most", "some"))} of the houses near the river, but the
                {landmark} was not damaged.""",
                f"""The railway from {near} to {far} reached {town} in {railway}. Under the mayor
                {mayor}, new streets were laid out between the station and the {landmark}. The
                {trade} trade lost its importance in these years, and a well-known {new}
                factory became the largest employer of the town. It was closed in
                {railway + rng.randint(70, 110)}.""",
            ),
            section(
                f"Geography of {town}",
                f"""{town} lies in the wide valley of the River {river}. The old town stands on
                the {rng.choice(("left", "right"))} bank, while the newer parts are on the
                other side. To the {direction} the land rises to low hills that are covered
                with {rng.choice(("oak", "beech", "pine"))} forest. Roads lead to {near} and
                to {far}, which is {distance + rng.randint(5, 40)} kilometres away.""",
            ),
        ),
    )


def river_article(rng: Random) -> Article:
    """A river with its course and use."""
    river, source = river_name(rng), town_name(rng)
    middle = other_town(rng, source)
    mouth = other_town(rng, source, middle)
    length, tenth = rng.randint(40, 280), rng.randint(1, 9)
    mills, year = rng.choice(NUMBER_WORDS[3:16]), rng.randint(1710, 1830)
    fish, trade = rng.choice(("trout", "salmon", "pike", "perch")), rng.choice(TRADES)
    locks = rng.choice(NUMBER_WORDS[3:13])
    title = f"River {river}"
    return Article(
        title,
        prose(f"""
            The {title} is a river that rises near {source} and flows into the sea at {mouth}. It is
            {length}.{tenth} kilometres long. On its way it passes the town of {middle}, where it is
            crossed by {Word(rng.choice(("stone", "iron", "wooden"))):a} bridge. The river is a
            popular place for walking and for fishing.
        """)
        + some(
            rng,
            2,
            "Its name is older than the towns on its banks and may mean clear water.",
            f"The {river} freezes in very cold winters, the last time in {year + 180}.",
            f"The people of {middle} get their drinking water from it.",
            f"A poem about the {river} is taught in the schools of {mouth}.",
        ),
        (
            section(
                f"Course of the {title}",
                f"""The {river} begins as a small spring in the hills above {source}. For the
                first part of its course it runs through a narrow valley with steep sides.
                Below {middle} the valley becomes wider, and the river turns slowly towards
                the {rng.choice(("north", "south", "east", "west"))}. Its last kilometres
                before {mouth} are tidal, and the water there is partly salt.""",
                f"""The largest tributary of the {river} is the {river_name(rng)} brook, which
                joins it near {middle}. After heavy rain in {rng.choice(MONTHS)} the fields
                between {middle} and {mouth} are often under water. A low dam protects the
                houses of {mouth}.""",
            ),
            section(
                f"Use of the {title}",
                f"""In {year} there were {mills} mills on the {river}, most of them near {source}.
                Boats carried {trade} from {middle} to the harbour of {mouth}, and {locks}
                locks were built to make the journey easier. When the railway came, the boats
                lost their work and the locks fell into disuse. Today the clear water is again
                home to {fish}, and a path follows the bank from {source} to {mouth}.""",
            ),
        ),
    )


def person_article(rng: Random) -> Article:
    """A person with a life and a work."""
    first, he, his = rng.choice(FIRST_NAMES)
    last = rng.choice(LAST_NAMES)
    birthplace = town_name(rng)
    home = other_town(rng, birthplace)
    art, work, known = rng.choice(ARTS)
    born = rng.randint(1790, 1910)
    died = born + rng.randint(52, 91)
    parent, start = rng.choice(("baker", "teacher", "sailor", "tailor", "miller")), born + 19
    helper = (
        f"{rng.choice(FIRST_NAMES)[0]} {rng.choice([name for name in LAST_NAMES if name != last])}"
    )
    success, count = born + rng.randint(28, 40), rng.choice(NUMBER_WORDS[5:20])
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    name = f"{first} {last}"
    return Article(
        name,
        prose(f"""
            {name} ({day} {month} {born} to {died}) was {Word(art):a} from {birthplace}.
            {Word(he):c} is best known for {his} {known}. {last} spent most of {his} life in {home},
            where a street and a school are named after {"him" if he == "he" else "her"}.
        """)
        + some(
            rng,
            2,
            f"{Word(his):c} letters to {helper} were printed in {died + 12}.",
            f"Every year the town of {birthplace} gives a prize in {his} name.",
            f"Little was known about {last} until a box of papers was found in {home}.",
            f"{Word(he):c} also taught at the evening school of {home} for {count} years.",
        ),
        (
            section(
                f"Life of {name}",
                f"""{last} was born in {birthplace} as the {rng.choice(("first", "second"))} child
                of {Word(parent):a}. At school {he} was quiet and liked to draw and to read.
                In {start} {he} moved to {home} to work for {helper}, who became {his} teacher
                and friend. The years with {helper} were hard, but {last} later said that {he}
                had learned everything there.""",
                f"""After the death of {helper}, {last} opened {his} own workshop in {home}.
                {Word(he):c} never married and rarely left the town, apart from a long journey
                to the coast in {success + 3}. In {his} last years {he} was almost blind.
                {last} died in {home} in {died}, at the age of {died - born - 1}.""",
            ),
            section(
                f"Work of {name}",
                f"""The first important {work} by {last} was shown in {home} in {success} and was
                praised by the local newspaper. In all {he} left {count} large works, most of
                them {known}. Critics liked their clear form and their calm mood. A museum in
                {birthplace} shows letters, tools and an early {work} from {his} time with
                {helper}.""",
            ),
        ),
    )


def ship_article(rng: Random) -> Article:
    """A ship with its building and its journeys."""
    name = f"{rng.choice(SHIP_QUALITIES)} {rng.choice(SHIP_NOUNS)}"
    yard = town_name(rng)
    port = other_town(rng, yard)
    goal = other_town(rng, yard, port)
    launched = rng.randint(1840, 1925)
    length, tenth, crew = rng.randint(31, 120), rng.randint(1, 9), rng.randint(14, 90)
    kind, cargo = rng.choice(("sailing ship", "steamship", "cargo ship")), rng.choice(CARGOES)
    captain, builder = (
        f"{person[0]} {last}"
        for person, last in zip(rng.sample(FIRST_NAMES, 2), rng.sample(LAST_NAMES, 2), strict=True)
    )
    storm, end = launched + rng.randint(3, 15), launched + rng.randint(22, 40)
    masts, month = rng.choice(("two", "three", "four")), rng.choice(MONTHS)
    lost = rng.choice(("a mast", "an anchor", "two boats", "a part of the cargo"))
    return Article(
        name,
        prose(f"""
            The {name} was a {kind} that was launched at {yard} in {launched}. For most of her
            career she carried {cargo} between {port} and {goal}. She was {length}.{tenth} metres
            long and had a crew of {crew}. The {name} was in service until {end}.
        """)
        + some(
            rng,
            2,
            "Sailors called her a lucky ship, because she never lost a member of her crew.",
            "She was the second ship with this name.",
            f"In {launched + 1} she was the fastest {kind} on the way to {goal}.",
            f"A picture of her is shown on the flag of the sailing club of {port}.",
        ),
        (
            section(
                f"Building of the {name}",
                f"""The {name} was designed by {builder} and built at the yard of {yard} within
                {rng.choice(NUMBER_WORDS[8:20])} months. She had {masts} masts and a hull of
                {rng.choice(("oak", "iron", "steel"))}. Her {rng.choice(("bow", "stern"))} was
                decorated with a wooden figure, which is now in the museum of {port}. On
                {rng.randint(1, 28)} {month} {launched} she was launched before a large crowd.""",
            ),
            section(
                f"Service of the {name}",
                f"""Under her first captain, {captain}, the {name} left {port} for {goal} with a
                full load of {cargo}. The journey took {rng.choice(NUMBER_WORDS[5:20])} days.
                In {storm} she met a heavy storm off {goal} and lost {lost}, but {captain}
                brought all {crew} members of the crew home. The owners thanked {captain} with
                a gold watch.""",
                f"""After {storm} the {name} was repaired at {yard} and given to a new company.
                She went on carrying {cargo} until {end}, when she was sold and broken up. Her
                bell hangs in the {rng.choice(("church", "school", "town hall"))} of {goal}. A
                model of the {name}, one metre long, can be seen in {yard}.""",
            ),
        ),
    )


WRITERS: tuple[Callable[[Random], Article], ...] = (
    town_article,
    town_article,
    town_article,
    person_article,
    person_article,
    person_article,
    ship_article,
    ship_article,
    river_article,
)


def draw_article(rng: Random) -> Article:
    """A random article of any kind."""
    return rng.choice(WRITERS)(rng)
