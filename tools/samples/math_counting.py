"""Problems of counting and probability."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from tools.samples.math_text import Problem, fraction, lowest_terms, plain_fraction, power
from tools.samples.phrases import PEOPLE, words_in
from tools.samples.words import COLOURS

COUNTING = "Counting & Probability"
LETTER_WORDS = words_in("sun bread water garden planet house apron friends mother cloud winter")


def arrangements(rng: Random) -> Problem:
    """Ways to put different letters in a row, some of them fixed."""
    word = rng.choice(LETTER_WORDS)
    letters = len(word)
    if rng.random() < 0.5:
        first = rng.choice(word)
        return Problem(
            COUNTING,
            3,
            f"In how many ways can the letters of the word {word.upper()} be put in a row, "
            f"if {first.upper()} must come first?",
            (
                f"The letter {first.upper()} is fixed, and ${letters - 1}$ other letters are left.",
                f"They can be put in a row in ${letters - 1}! = [result]$ ways.",
            ),
            str(math.factorial(letters - 1)),
        )
    count = rng.randint(3, 7)
    things = rng.choice(("books", "people", "cars", "flags", "cups", "pictures", "stones"))
    return Problem(
        COUNTING,
        2,
        f"In how many ways can ${count}$ different {things} be put in a row?",
        (
            f"There are ${count}$ choices for the first place, then one less for each place.",
            f"So there are ${count}! = [result]$ ways.",
        ),
        str(math.factorial(count)),
    )


def choosing(rng: Random) -> Problem:
    """Ways to choose some of a group."""
    whole = rng.randint(4, 12)
    part = rng.randint(2, min(4, whole - 1))
    group = rng.choice(("children", "players", "books", "flowers", "cards"))
    top = " \\cdot ".join(str(whole - step) for step in range(part))
    bottom = " \\cdot ".join(str(part - step) for step in range(part))
    return Problem(
        COUNTING,
        3,
        f"In how many ways can one choose ${part}$ of ${whole}$ {group}?",
        (
            "The order does not matter.",
            (
                f"So the number is $\\binom{{{whole}}}{{{part}}} = "
                f"\\frac{{{top}}}{{{bottom}}} = [result]$."
            ),
        ),
        str(math.comb(whole, part)),
    )


def drawing_marbles(rng: Random) -> Problem:
    """The probability of a colour when one or two marbles are drawn."""
    first, second = rng.sample(COLOURS.words, 2)
    a, b = rng.randint(2, 10), rng.randint(2, 10)
    total = a + b
    bag = f"A bag has ${a}$ {first} and ${b}$ {second} marbles."
    if rng.random() < 0.5:
        return Problem(
            COUNTING,
            2,
            f"{bag} One marble is drawn. What is the probability that it is {first}?",
            (
                f"There are ${a} + {b} = {total}$ marbles.",
                f"So the probability is {lowest_terms(a, total)}.",
            ),
            fraction(Fraction(a, total)),
        )
    return Problem(
        COUNTING,
        4,
        f"{bag} Two marbles are drawn without putting the first one back. "
        f"What is the probability that both are {first}?",
        (
            f"The first is {first} with probability ${plain_fraction(a, total)}$.",
            f"Then the second is {first} with probability ${plain_fraction(a - 1, total - 1)}$.",
            "The product of both is $[result]$.",
        ),
        fraction(Fraction(a * (a - 1), total * (total - 1))),
    )


def coin_heads(rng: Random) -> Problem:
    """The probability of some number of heads."""
    tosses = rng.randint(2, 8)
    heads = rng.randint(0, tosses)
    person = rng.choice(PEOPLE).name
    ways = math.comb(tosses, heads)
    return Problem(
        COUNTING,
        4,
        f"{person} tosses a fair coin ${tosses}$ times. What is the probability of exactly "
        f"{'one head' if heads == 1 else f'${heads}$ heads'}?",
        (
            f"There are ${power(2, tosses)} = {2**tosses}$ results that are equally likely.",
            f"In $\\binom{{{tosses}}}{{{heads}}} = {ways}$ of them there are so many heads.",
            f"So the probability is {lowest_terms(ways, 2**tosses)}.",
        ),
        fraction(Fraction(ways, 2**tosses)),
    )


def dice_sum(rng: Random) -> Problem:
    """The probability of a sum with two dice."""
    target = rng.randint(2, 12)
    ways = [(first, target - first) for first in range(1, 7) if 1 <= target - first <= 6]
    person = rng.choice(PEOPLE).name
    pairs = ", ".join(f"({first}, {second})" for first, second in ways)
    return Problem(
        COUNTING,
        3,
        f"{person} rolls two fair dice. What is the probability that the sum is ${target}$?",
        (
            "There are $6 \\cdot 6 = 36$ results that are equally likely.",
            f"The sum ${target}$ comes from ${pairs}$; the number of these is ${len(ways)}$.",
            f"The probability is {lowest_terms(len(ways), 36)}.",
        ),
        fraction(Fraction(len(ways), 36)),
    )


COUNTING_PROBLEMS = (
    arrangements,
    choosing,
    drawing_marbles,
    coin_heads,
    dice_sum,
)
