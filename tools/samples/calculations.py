"""Small calculations as questions with answers: terms, word problems and comparisons."""

from __future__ import annotations

from random import Random

from tools.samples.phrases import NUMBER_WORDS, PEOPLE, counted, sentence_case
from tools.samples.words import FRUITS

Question = tuple[str, str]


def calculation(rng: Random) -> Question:
    """A sum, a difference or a product of small numbers, in digits or in words."""
    sign, first, second, result = draw_calculation(rng)
    in_words = result < len(NUMBER_WORDS) and rng.random() < 0.2
    a, b, c = (
        NUMBER_WORDS[number] if in_words else str(number) for number in (first, second, result)
    )
    term = f"{a} {sign} {b}"
    asked = rng.choice(
        ("What is {}?", "How much is {}?", "Tell me what {} is.", "Can you work out {}?")
    )
    return asked.format(term), sentence_case(f"{term} is {c}.")


def draw_calculation(rng: Random) -> tuple[str, int, int, int]:
    """The sign, the two numbers and the result of a small calculation."""
    sign = rng.choice(("plus", "plus", "minus", "times"))
    if sign == "plus":
        first, second = rng.randint(1, 7), rng.randint(1, 7)
        return sign, first, second, first + second
    if sign == "minus":
        first = rng.randint(2, 10)
        second = rng.randint(1, first - 1)
        return sign, first, second, first - second
    first, second = rng.randint(1, 4), rng.randint(1, 5)
    return sign, first, second, first * second


def word_problem(rng: Random) -> Question:
    """A person has some fruit and gets more or gives some away."""
    person = rng.choice(PEOPLE)
    name, she, fruit = person.name, person.subject, rng.choice(FRUITS.words)
    if rng.random() < 0.5:
        first, second = rng.randint(1, 6), rng.randint(1, 6)
        total, happening = first + second, rng.choice(("buys", "gets", "finds"))
        change = f"{happening} {second} more"
    else:
        first = rng.randint(3, 9)
        second = rng.randint(1, first - 1)
        total, happening = first - second, rng.choice(("eats", "gives away", "loses"))
        change = f"{happening} {second} of them"
    return (
        f"{name} has {counted(first, fruit)} and {change}. How many {fruit:s} does {she} have now?",
        f"{name} has {counted(total, fruit)} now.",
    )


def comparison(rng: Random) -> Question:
    """The bigger or the smaller of two numbers."""
    low, high = sorted(rng.sample(range(1, 31), 2))
    shown = [str(low), str(high)]
    rng.shuffle(shown)
    quality, number = rng.choice((("bigger", high), ("smaller", low)))
    other = low if number == high else high
    return (
        f"Which number is {quality}, {shown[0]} or {shown[1]}?",
        f"{number} is {quality} than {other}.",
    )


def small_calculation(rng: Random) -> Question:
    """A calculation of any kind."""
    return rng.choices((calculation, word_problem, comparison), (10, 3, 1))[0](rng)
