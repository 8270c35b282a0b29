"""Helpful talks: the last question can be answered only with what was said before."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.samples.facts import known_pairs
from tools.samples.phrases import (
    DAYS,
    NUMBER_WORDS,
    PEOPLE,
    Word,
    counted,
    join_words,
    sentence_case,
    two_people,
    words_in,
)
from tools.samples.talks import Talk, interlude
from tools.samples.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    DRINKS,
    FRUITS,
    INSTRUMENTS,
    JOBS,
    PETS,
    VEGETABLES,
    WordGroup,
)

REFUSALS = (
    "I do not know.",
    "How should I know that?",
    "Please ask somebody else.",
    "I was not listening.",
    "That is not important.",
)
THANKS = ("Good to know.", "Thank you for telling me.", "I will remember that.", "That is nice.")
APPOINTMENTS = ("the dentist", "my teacher", "my aunt", "the doctor", "my boss", "an old friend")
ADJECTIVES = words_in("brave small lazy clever lonely happy")

PROBLEMS = (
    ("My plant has dry leaves.", "give it more water", "move it out of the hot sun"),
    ("I cannot sleep at night.", "drink less coffee", "go to bed at the same time every day"),
    ("My soup has too much salt.", "add some water", "cook a potato in it"),
    ("My bike makes a strange noise.", "oil the chain", "look whether a wheel is loose"),
    ("My dog does not want to eat.", "give it fresh food", "take it to an animal doctor"),
    ("My room is always cold.", "close the window", "put a warm carpet on the floor"),
    ("I often forget names.", "say each name aloud", "write the names in a small book"),
    ("My bread does not rise.", "use fresh yeast", "put the dough in a warm place"),
    ("I am afraid of my test.", "learn a little every day", "ask a friend to practise with you"),
    ("My back hurts after work.", "take short walks", "use a better chair"),
    ("My shoes are wet.", "fill them with paper", "put them in a dry and warm place"),
    ("I cannot find my keys.", "look in your coat", "think of the last place where you were"),
    ("My phone is very slow.", "start it again", "remove what you do not use"),
    ("My child does not like carrots.", "make a sweet soup of them", "cook them together"),
)

ELLIPSES = (
    ("What is the capital of {0}?", "The capital of {0} is {1}.", "country", "capital"),
    ("What language do people speak in {0}?", "People in {0} speak {1}.", "country", "language"),
    ("What colour is {0}?", "{0:c} is {1}.", "thing", "colour"),
    ("How many legs does {0:a} have?", "{0:A} has {1} legs.", "animal", "legs"),
    ("What is the opposite of {0}?", "The opposite of {0} is {1}.", "word", "opposite"),
    ("What is {0:a} made of?", "{0:A} is made of {1}.", "thing", "material"),
    ("Where does {0:a} work?", "{0:A} works {1}.", "job", "place"),
)


def bad_answer(rng: Random, wrong: str) -> str:
    """A wrong answer, or one that does not help."""
    return wrong if rng.random() < 0.6 else rng.choice(REFUSALS)


def remembered_name(rng: Random) -> Talk:
    """The human says a name and later asks for it."""
    person, other = two_people(rng)
    hello = rng.choice(("Hello", "Hi", "Good morning", "Good evening"))
    called = rng.choice(("my name is", "I am", "people call me"))
    asked = rng.choice(
        ("What is my name?", "Do you remember my name?", "Who am I?", "Can you tell me my name?")
    )
    return Talk(
        (
            f"{hello}, {called} {person.name}.",
            f"{hello} {person.name}, how can I help you?",
            *interlude(rng),
            *interlude(rng),
            asked,
        ),
        f"Your name is {person.name}.",
        bad_answer(rng, f"Your name is {other.name}."),
    )


def remembered_detail(rng: Random) -> Talk:
    """The human says something personal and later asks for it."""

    def two(group: WordGroup) -> list[Word]:
        return rng.sample(group.words, 2)

    owner = rng.choice(("I", "My brother", "My sister", "My mother", "My best friend"))
    mine = owner == "I"
    who = "I" if mine else owner.lower()
    whose = "my" if mine else f"{who}'s"
    your = who.replace("my", "your")
    have, does, you = ("have", "do", "You") if mine else ("has", "does", sentence_case(your))
    suffix = "" if mine else "s"
    yours = "Your" if mine else f"{you}'s"
    pet, colour, city, drink = two(PETS), two(COLOURS), two(CITIES), two(DRINKS)
    music, job = two(INSTRUMENTS), two(JOBS)
    be, being, you_are = ("am", "are", "You are") if mine else ("is", "is", f"{you} is")
    said, asked, answers = rng.choice(
        (
            (
                f"{owner} {have} {pet[0]:a}.",
                f"Which pet {does} {who} have?",
                [f"{you} {have} {value:a}." for value in pet],
            ),
            (
                f"{sentence_case(whose)} favourite colour is {colour[0]}.",
                f"What is {whose} favourite colour?",
                [f"{yours} favourite colour is {value}." for value in colour],
            ),
            (
                f"{owner} live{suffix} in {city[0]}.",
                f"Where {does} {who} live?",
                [f"{you} live{suffix} in {value}." for value in city],
            ),
            (
                f"{owner} like{suffix} to drink {drink[0]}.",
                f"What {does} {who} like to drink?",
                [f"{you} like{suffix} to drink {value}." for value in drink],
            ),
            (
                f"{owner} play{suffix} the {music[0]}.",
                f"Which instrument {does} {who} play?",
                [f"{you} play{suffix} the {value}." for value in music],
            ),
            (
                f"{owner} {be} {job[0]:a}.",
                f"What {be} {who} by profession?",
                [f"{you_are if mine else f'{you} {being}'} {value:a}." for value in job],
            ),
        )
    )
    return Talk(
        (said, rng.choice(THANKS), *interlude(rng), asked),
        answers[0],
        bad_answer(rng, answers[1]),
    )


def counting(rng: Random) -> Talk:
    """Things are bought, eaten or given away over several turns."""
    fruit = rng.choice(FRUITS.words)
    count = rng.randint(2, 9)
    turns = [
        rng.choice(("I bought {}.", "I have {}.", "There are {} in my bag.")).format(
            counted(count, fruit)
        ),
        rng.choice(THANKS),
    ]
    for _ in range(rng.randint(1, 2)):
        step = rng.randint(1, 4)
        if count > step and rng.random() < 0.5:
            count -= step
            turns.append(f"Then I {rng.choice(('ate', 'lost', 'gave away'))} {step} of them.")
        else:
            count += step
            turns.append(f"Then I {rng.choice(('got', 'bought', 'found'))} {step} more.")
        turns.append(rng.choice(("I see.", "All right.", "I understand.")))
    wrong = count + rng.choice((1, 2, 3))
    return Talk(
        (*turns, f"How many {fruit:s} do I have now?"),
        f"You have {counted(count, fruit)} now.",
        bad_answer(rng, f"You have {counted(wrong, fruit)} now."),
    )


def shopping_list(rng: Random) -> Talk:
    """A list to which things are added and from which one is taken."""
    goods = [
        f"{word:s}" if word in FRUITS.words + VEGETABLES.words else str(word)
        for word in rng.sample(FRUITS.words + VEGETABLES.words + DRINKS.words, 4)
    ]
    first, added = goods[: rng.randint(2, 3)], goods[3]
    turns = [
        f"Please write a shopping list with {join_words(first)}.",
        f"Your list has {join_words(first)}.",
    ]
    final = list(first)
    if rng.random() < 0.7:
        turns += [f"Add {added}, please.", f"I have added {added}."]
        final.append(added)
    if rng.random() < 0.5:
        gone = rng.choice(first)
        turns += [f"I do not need {gone}.", f"I have taken {gone} from the list."]
        final.remove(gone)
    asked = rng.choice(("What is on my list now?", "Read me the list, please."))
    wrong = rng.sample(goods, max(len(final) - 1, 1))
    return Talk(
        (*turns, asked),
        f"Your list has {join_words(final)} now.",
        bad_answer(rng, f"I think that {join_words(wrong)} may be there, and some other things."),
    )


def appointments(rng: Random) -> Talk:
    """Two meetings, of which one is asked for."""
    people = rng.sample(APPOINTMENTS, 2)
    days = rng.sample(DAYS, 2)
    hours = [NUMBER_WORDS[hour] for hour in rng.sample(range(1, 12), 2)]
    asked = rng.randrange(2)
    who = people[asked].replace("my", "your")
    return Talk(
        (
            f"I see {people[0]} on {days[0]} at {hours[0]}.",
            "I will remember that.",
            f"And I see {people[1]} on {days[1]} at {hours[1]}.",
            "I have both of them.",
            *interlude(rng),
            rng.choice(
                (
                    f"When do I see {people[asked]}?",
                    f"On which day and at what time do I see {people[asked]}?",
                )
            ),
        ),
        f"You see {who} on {days[asked]} at {hours[asked]}.",
        bad_answer(rng, f"You see {who} on {days[1 - asked]} at {hours[asked]}."),
    )


def next_question(rng: Random) -> Talk:
    """A question about a fact, then a short one that means the same for another thing."""
    question, answer, thing, value = rng.choice(ELLIPSES)
    facts = rng.sample(known_pairs(thing, value), 3)
    turns: list[str] = []
    for place, fact in enumerate(facts[: rng.randint(2, 3)]):
        name = f"{fact[0]:a}" if "{0:a}" in question else fact[0]
        asked = rng.choice((f"And {name}?", f"And what about {name}?", f"And the same for {name}?"))
        turns += [question.format(*fact) if place == 0 else asked, answer.format(*fact)]
    return Talk(
        tuple(sentence_case(turn) for turn in turns[:-1]),
        sentence_case(turns[-1]),
        bad_answer(rng, sentence_case(turns[1])),
    )


def second_advice(rng: Random) -> Talk:
    """Advice on a problem, then other advice when the first did not help."""
    problem, first, second = rng.choice(PROBLEMS)
    opening = rng.choice(("", "I need help. ", "Can you help me? ", "Good morning. "))
    asked = rng.choice(
        (
            "I have tried that already. What else can I do?",
            "That did not help. Do you have another idea?",
            "Thank you. And what can I do if that does not help?",
        )
    )
    return Talk(
        (f"{opening}{problem} What can I do?", f"You could {first}.", *interlude(rng), asked),
        f"Then you could {second}.",
        bad_answer(rng, f"You could {first}."),
    )


def rewriting(rng: Random) -> Talk:
    """A sentence is written and then changed."""
    quality, animal = Word(rng.choice(ADJECTIVES)), rng.choice(ANIMALS.words)
    other = rng.choice([word for word in ANIMALS.words if word != animal])
    rest = rng.choice(("lived by the sea", "could not sleep", "loved the rain", "was my friend"))
    return Talk(
        (
            f"Write a sentence about {quality:a} {animal}.",
            f"Once there was {quality:a} {animal} that {rest}.",
            rng.choice((f"Now make it {other:a}.", f"Please write it for {other:a}.")),
        ),
        f"Once there was {quality:a} {other} that {rest}.",
        bad_answer(rng, f"Once there was {quality:a} {animal} that {rest}."),
    )


def comparing_ages(rng: Random) -> Talk:
    """Two people with their ages, then the question who is older."""
    people = rng.sample(PEOPLE, 2)
    ages = rng.sample(range(20, 60), 2)
    older = ages.index(max(ages))
    quality, right = rng.choice((("older", older), ("younger", 1 - older)))
    return Talk(
        (
            f"My friend {people[0].name} is {ages[0]} years old.",
            rng.choice(THANKS),
            f"My friend {people[1].name} is {ages[1]}.",
            "I see.",
            f"Who is {quality}?",
        ),
        f"{people[right].name} is {quality} than {people[1 - right].name}.",
        bad_answer(rng, f"{people[1 - right].name} is {quality} than {people[right].name}."),
    )


SCENES: tuple[Callable[[Random], Talk], ...] = (
    remembered_name,
    remembered_detail,
    remembered_detail,
    counting,
    counting,
    shopping_list,
    appointments,
    next_question,
    next_question,
    second_advice,
    rewriting,
    comparing_ages,
)


def helpful_talk(rng: Random) -> Talk:
    """A random helpful talk."""
    return rng.choice(SCENES)(rng)
