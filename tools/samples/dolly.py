"""Instructions with answers in the fields of Dolly: instruction, context, response, category."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.samples.calculations import small_calculation
from tools.samples.facts import fact_questions
from tools.samples.passages import PLACES, draw_passage, list_items
from tools.samples.phrases import (
    NUMBER_WORDS,
    PEOPLE,
    Row,
    Word,
    belongs_to,
    distinct_rows,
    generator,
    join_words,
    sentence_case,
    two_people,
    words_in,
)
from tools.samples.words import ANIMALS, GROUPS, two_groups

VALIDATION_SHARE = 20

IDEAS = {
    "a rainy day": "read a book;bake bread;call a friend;play the piano;write a letter",
    "a sunny day": "swim in the sea;ride a bike;walk in the park;plant flowers;visit the market",
    "a cold winter day": "play in the snow;drink hot tea;read a book;bake bread;visit a museum",
    "a birthday": "bake a cake;sing a song;give flowers;write a card;invite friends;play a game",
    "a quiet evening": "read a book;listen to music;cook soup;write a letter;look at the stars",
    "a day at the beach": "swim in the sea;look for shells;fly a kite;sleep in the sun;play a game",
    "a day in the garden": "plant beans;water the flowers;pick apples;feed the birds;cut the grass",
    "a long train ride": "read a book;look at the hills;sleep;write a letter;talk to people",
}

NEWS = {
    "good": "won a prize;found the lost key;got a new bike;made a new friend;passed the test;"
    "got a letter from an old friend",
    "bad": "lost the key;fell from the bike;broke a leg;missed the last bus;burned the bread;"
    "is very sick",
}

LINES = {
    "the rain": "the rain sings softly on the roof",
    "the sea": "the sea tells old stories to the stones",
    "the moon": "the moon is a lamp for all who walk at night",
    "the wind": "the wind carries songs from far away",
    "the snow": "the snow lays a white coat on the hills",
    "the spring": "the spring opens every flower with a warm hand",
    "the night": "the night is a dark house full of stars",
    "a river": "a river is a road that never sleeps",
    "a tree": "a tree is a tall home for small birds",
    "a garden": "a garden is a letter that the sun writes",
    "a friend": "a friend is a warm light in a cold winter",
    "music": "music is a boat that takes us over the sea",
}

POLITE = ("Hello. {}", "I have a question. {}", "Please help me. {}", "{} Thank you.")
ADJECTIVES = words_in("small old happy brave quiet clever lonely hungry")
WISHES = (
    "wanted to see the sea",
    "could not sleep at night",
    "found a gold ring in the grass",
    "dreamed of a long journey",
    "lived alone in the forest",
    "loved to sing in the rain",
)


def row(instruction: str, response: str, category: str, context: str = "") -> Row:
    """A row in Dolly's fields."""
    return {
        "instruction": instruction,
        "context": context,
        "response": response,
        "category": category,
    }


def row_key(row: Row) -> str:
    """What makes a row different from others: the task without its answer."""
    return f"{row['instruction']}\n{row['context']}"


def general_question(rng: Random) -> Row:
    """A small calculation."""
    question, answer = small_calculation(rng)
    return row(question, answer, "general_qa")


def greeting(rng: Random) -> Row:
    """A few friendly words at the beginning or the end of a talk."""
    name = rng.choice(PEOPLE).name
    said, answer = rng.choice(
        (
            (f"Hello, my name is {name}.", f"Hello {name}, how can I help you?"),
            (f"Hello, I am {name}.", f"Hello {name}, how can I help you?"),
            (f"Good morning, I am {name}.", f"Good morning, {name}. What can I do for you?"),
            (f"Good evening, this is {name}.", f"Good evening, {name}. What can I do for you?"),
            (f"I am {name}. How are you?", f"I am well, thank you, {name}. How are you?"),
            (f"Thank you, says {name}.", f"You are welcome, {name}."),
            (f"{name} says goodbye.", f"Goodbye, {name}. See you soon."),
        )
    )
    return row(said, answer, "general_qa")


def kind_of_word(rng: Random) -> Row:
    """One word and its kind, asked freely or as a choice between two kinds."""
    right, wrong = two_groups(rng)
    word = rng.choice(right.words)
    kinds = [f"{right.kind:a}", f"{wrong.kind:a}"]
    rng.shuffle(kinds)
    thing = right.one(word)
    question = rng.choice(
        (
            f"Is {thing} {kinds[0]} or {kinds[1]}?",
            f"What is {thing}, {kinds[0]} or {kinds[1]}?",
            f"What kind of thing is {thing}?",
            f"Is it right that {thing} is {right.kind:a}?",
        )
    )
    answer = f"{thing} is {right.kind:a}."
    if question.startswith("Is it right"):
        return row(question, f"Yes, {answer}", "classification")
    return row(question, sentence_case(answer), "classification")


def sorting(rng: Random) -> Row:
    """Words of two kinds that are to be put in order."""
    first, second = two_groups(rng)
    mine = rng.sample(first.words, 2)
    others = rng.sample(second.words, 2)
    words = [*mine, *others]
    rng.shuffle(words)
    order = {word: place for place, word in enumerate(words)}
    mine.sort(key=order.__getitem__)
    others.sort(key=order.__getitem__)
    task = rng.choice(("Sort these words into", "Put these words into two groups,"))
    return row(
        f"{task} {first.kind:s} and {second.kind:s}: {', '.join(words)}.",
        f"The {first.kind:s} are {join_words(mine)}. The {second.kind:s} are {join_words(others)}.",
        "classification",
    )


def odd_one_out(rng: Random) -> Row:
    """Three words of one kind and one of another kind."""
    common, rare = two_groups(rng)
    odd = rng.choice(rare.words)
    words = [*rng.sample(common.words, 3), odd]
    rng.shuffle(words)
    asked = rng.choice(("Which word does not belong", "Which word is different from the others"))
    return row(
        f"{asked}: {', '.join(words)}?",
        f"The word {odd} does not belong, because the other words are {common.kind:s}.",
        "classification",
    )


def news(rng: Random) -> Row:
    """Whether something that happened to a person is good or bad news."""
    quality = rng.choice(tuple(NEWS))
    event = f"{rng.choice(PEOPLE).name} {rng.choice(NEWS[quality].split(';'))}."
    asked = rng.choice(("Is this good or bad news", "Say if this news is good or bad"))
    return row(f"{asked}: {event}", f"This is {quality} news.", "classification")


def closed_question(rng: Random) -> Row:
    """A question whose answer is in the context."""
    passage = draw_passage(rng)
    question, answer = rng.choice(passage.questions)
    return row(question, answer, "closed_qa", passage.text)


def extraction(rng: Random) -> Row:
    """The names, days or numbers that a context contains."""
    passage = draw_passage(rng)
    kind, items = rng.choice(passage.items)
    asked = rng.choice(
        (
            f"List every {kind} in the text.",
            f"Find each {kind} in this text.",
            f"Which {kind}s are in the text?",
            f"Write down every {kind} from the text.",
        )
    )
    return row(asked, list_items(kind, items), "information_extraction", passage.text)


def summary(rng: Random) -> Row:
    """A context in one sentence."""
    passage = draw_passage(rng)
    asked = rng.choice(
        (
            "Summarize the text in one sentence.",
            "Say this in one sentence.",
            "Give me a short summary of the text.",
            "Make one sentence of this text.",
        )
    )
    return row(asked, passage.summary, "summarization", passage.text)


def listing(rng: Random) -> Row:
    """A few words of one kind."""
    group = rng.choice(GROUPS)
    count = rng.randint(2, 5)
    number = NUMBER_WORDS[count]
    asked = rng.choice(
        (
            "Name {}.",
            "Give me {}.",
            "List {}.",
            "Can you name {}?",
            "Tell me {}.",
            "Think of {}.",
            "Please name {}.",
        )
    ).format(f"{number} {group.kind:s}")
    words = [group.one(word) for word in rng.sample(group.words, count)]
    return row(
        asked, f"{sentence_case(number)} {group.kind:s} are {join_words(words)}.", "brainstorming"
    )


def ideas(rng: Random) -> Row:
    """Things that a person could do."""
    occasion = rng.choice(tuple(IDEAS))
    name = rng.choice(PEOPLE).name
    first, second, third = rng.sample(IDEAS[occasion].split(";"), 3)
    asked = rng.choice(
        (
            f"Give {name} some ideas for {occasion}.",
            f"What can {name} do for {occasion}?",
            f"{name} needs ideas for {occasion}.",
        )
    )
    return row(asked, f"{name} can {first}, {second} or {third}.", "brainstorming")


def poetic_line(rng: Random) -> Row:
    """A line about something, for somebody."""
    topic = rng.choice(tuple(LINES))
    name = rng.choice(PEOPLE).name
    asked = rng.choice(
        (
            f"Write a line about {topic} for {name}.",
            f"Write a short poem about {topic} for my friend {name}.",
        )
    )
    return row(asked, f"Dear {name}, {LINES[topic]}.", "creative_writing")


def story_start(rng: Random) -> Row:
    """The first sentence of a story."""
    adjective, animal = Word(rng.choice(ADJECTIVES)), rng.choice(ANIMALS.words)
    asked = rng.choice(("Begin a story about", "Write the first line of a story about"))
    return row(
        f"{asked} {adjective:a} {animal}.",
        f"Once there was {adjective:a} {animal} that {rng.choice(WISHES)}.",
        "creative_writing",
    )


def sentence_with_words(rng: Random) -> Row:
    """A sentence in which given words occur."""
    animal, place = rng.choice(ANIMALS.words), rng.choice(PLACES)
    first, second = two_people(rng)
    happening = rng.choice(("saw", "found", "met"))
    return row(
        f"Write a sentence with the words {animal} and {place}.",
        f"{first.name} and {second.name} {happening} {animal:a} on the way to the {place}.",
        "creative_writing",
    )


def fact_rows(split: str, count: int, rng: Random) -> list[Row]:
    """Questions about general knowledge; when all were asked, the same with a polite word."""
    known = [pair for pair in fact_questions() if belongs_to(split, pair[0])]
    plain = [row(question, answer, "open_qa") for question, answer in known]
    if count <= len(plain):
        return rng.sample(plain, count)
    polite = [
        row(rng.choice(POLITE).format(question), answer, "open_qa") for question, answer in known
    ]
    return plain + rng.sample(polite, count - len(plain))


FACTS = {"train": 2700, "validation": 135}
SHARES: tuple[tuple[Callable[[Random], Row], int], ...] = (
    (general_question, 1500),
    (greeting, 80),
    (kind_of_word, 500),
    (sorting, 260),
    (odd_one_out, 200),
    (news, 100),
    (closed_question, 1100),
    (extraction, 400),
    (summary, 360),
    (listing, 300),
    (ideas, 180),
    (poetic_line, 100),
    (story_start, 120),
    (sentence_with_words, 100),
)


def rows(split: str, seed: int) -> list[Row]:
    """The rows of a split in random order."""
    rng = generator("dolly", split, seed)
    divisor = VALIDATION_SHARE if split == "validation" else 1
    result = fact_rows(split, FACTS[split], rng)
    for draw, count in SHARES:
        result += distinct_rows(draw, count // divisor, split, rng, row_key)
    rng.shuffle(result)
    return result
