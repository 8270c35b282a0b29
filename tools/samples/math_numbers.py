"""Problems of prealgebra and number theory."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from tools.samples.math_text import Problem, fraction, lowest_terms, plain_fraction, power
from tools.samples.phrases import PEOPLE, plural
from tools.samples.words import FRUITS

PREALGEBRA = "Prealgebra"
NUMBER_THEORY = "Number Theory"


def order_of_operations(rng: Random) -> Problem:
    """A sum with a product in it."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 12), rng.randint(2, 12)
    asked = rng.choice(("What is the value of ${}$?", "Compute ${}$.", "Find ${}$."))
    if rng.random() < 0.5:
        return Problem(
            PREALGEBRA,
            1,
            asked.format(f"{a} + {b} \\cdot {c}"),
            (
                f"The product comes first: ${b} \\cdot {c} = {b * c}$.",
                f"Then ${a} + {b * c} = [result]$.",
            ),
            str(a + b * c),
        )
    return Problem(
        PREALGEBRA,
        1,
        asked.format(f"({a} + {b}) \\cdot {c}"),
        (
            f"The bracket comes first: ${a} + {b} = {a + b}$.",
            f"Then ${a + b} \\cdot {c} = [result]$.",
        ),
        str((a + b) * c),
    )


def adding_fractions(rng: Random) -> Problem:
    """The sum of two fractions with different denominators."""
    b, d = rng.sample(range(2, 11), 2)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    common = math.lcm(b, d)
    left, right = a * common // b, c * common // d
    total = Fraction(a, b) + Fraction(c, d)
    steps = [
        f"The common denominator of ${b}$ and ${d}$ is ${common}$.",
        (
            f"So ${plain_fraction(a, b)} = {plain_fraction(left, common)}$ and "
            f"${plain_fraction(c, d)} = {plain_fraction(right, common)}$."
        ),
    ]
    steps.append(f"The sum is {lowest_terms(left + right, common)}.")
    asked = rng.choice(("Compute", "Find the sum", "Write as one fraction in lowest terms:"))
    return Problem(
        PREALGEBRA,
        2,
        f"{asked} ${plain_fraction(a, b)} + {plain_fraction(c, d)}$.",
        tuple(steps),
        fraction(total),
    )


def percentage(rng: Random) -> Problem:
    """A part of a number in percent."""
    percent, whole = rng.choice(range(5, 100, 5)), rng.choice(range(20, 420, 20))
    one_percent = fraction(Fraction(whole, 100))
    asked = rng.choice(
        (
            f"What is ${percent}\\%$ of ${whole}$?",
            (
                f"A school has ${whole}$ children. Of them, ${percent}\\%$ walk to school. "
                "How many children walk to school?"
            ),
        )
    )
    return Problem(
        PREALGEBRA,
        2,
        asked,
        (
            f"One percent of ${whole}$ is ${one_percent}$.",
            f"So ${percent}\\%$ is ${percent} \\cdot {one_percent} = [result]$.",
        ),
        fraction(Fraction(percent * whole, 100)),
    )


def average(rng: Random) -> Problem:
    """The average of a few numbers."""
    count = rng.randint(3, 5)
    numbers = [rng.randint(1, 30) for _ in range(count)]
    numbers[-1] += -sum(numbers) % count
    listed = ", ".join(map(str, numbers))
    return Problem(
        PREALGEBRA,
        1,
        rng.choice(("What is the average of {}?", "Find the mean of {}.")).format(f"${listed}$"),
        (
            f"The sum is ${' + '.join(map(str, numbers))} = {sum(numbers)}$.",
            (
                f"There are ${count}$ numbers, so the average is "
                f"$\\frac{{{sum(numbers)}}}{{{count}}} = [result]$."
            ),
        ),
        str(sum(numbers) // count),
    )


def sharing_by_ratio(rng: Random) -> Problem:
    """Things are shared by two people in a ratio."""
    first, second = (person.name for person in rng.sample(PEOPLE, 2))
    a, b = rng.choice(((1, 2), (2, 3), (3, 4), (3, 5), (2, 5), (4, 5), (1, 4)))
    unit, fruit = rng.randint(2, 12), rng.choice(FRUITS.words)
    total = unit * (a + b)
    return Problem(
        PREALGEBRA,
        3,
        f"{first} and {second} share ${total}$ {fruit:s} in the ratio ${a}:{b}$. "
        f"How many {fruit:s} does {second} get?",
        (
            f"There are ${a} + {b} = {a + b}$ equal parts.",
            f"One part is $\\frac{{{total}}}{{{a + b}}} = {unit}$ {plural(fruit)}.",
            f"{second} gets ${b} \\cdot {unit} = [result]$ {plural(fruit)}.",
        ),
        str(b * unit),
    )


def journey(rng: Random) -> Problem:
    """The distance of a journey at an even speed."""
    speed, hours = rng.choice(range(10, 125, 5)), rng.randint(2, 9)
    vehicle = rng.choice(("train", "car", "bus", "boat"))
    return Problem(
        PREALGEBRA,
        1,
        f"A {vehicle} travels ${speed}$ kilometres each hour. How many kilometres does it travel "
        f"in ${hours}$ hours?",
        (
            "The distance is the speed times the time.",
            f"So the {vehicle} travels ${speed} \\cdot {hours} = [result]$ kilometres.",
        ),
        str(speed * hours),
    )


def greatest_common_divisor(rng: Random) -> Problem:
    """The greatest common divisor by repeated division."""
    common = rng.randint(2, 15)
    a, b = sorted((common * factor for factor in rng.sample(range(2, 14), 2)), reverse=True)
    steps, high, low = [], a, b
    while high % low:
        steps.append(f"We have ${high} = {high // low} \\cdot {low} + {high % low}$.")
        high, low = low, high % low
    steps.append(f"Since ${low}$ divides ${high}$, the greatest common divisor is $[result]$.")
    asked = rng.choice(
        (
            f"Find the greatest common divisor of ${a}$ and ${b}$.",
            f"What is the largest number that divides both ${a}$ and ${b}$?",
        )
    )
    return Problem(NUMBER_THEORY, 2, asked, tuple(steps), str(math.gcd(a, b)))


def least_common_multiple(rng: Random) -> Problem:
    """The least common multiple from the greatest common divisor."""
    a, b = rng.sample(range(4, 31), 2)
    common = math.gcd(a, b)
    asked = rng.choice(
        (
            f"Find the least common multiple of ${a}$ and ${b}$.",
            f"What is the smallest positive number that both ${a}$ and ${b}$ divide?",
        )
    )
    return Problem(
        NUMBER_THEORY,
        2,
        asked,
        (
            f"The greatest common divisor of ${a}$ and ${b}$ is ${common}$.",
            f"So the least common multiple is $\\frac{{{a} \\cdot {b}}}{{{common}}} = [result]$.",
        ),
        str(a * b // common),
    )


def remainder_of_power(rng: Random) -> Problem:
    """The remainder of a power by looking for a cycle."""
    modulus, exponent = rng.choice((5, 7, 9, 10, 11)), rng.randint(11, 60)
    base = rng.choice([number for number in range(2, modulus) if math.gcd(number, modulus) == 1])
    cycle = [1]
    while (following := cycle[-1] * base % modulus) != 1:
        cycle.append(following)
    period, place = len(cycle), exponent % len(cycle)
    return Problem(
        NUMBER_THEORY,
        4,
        f"What is the remainder when ${power(base, exponent)}$ is divided by ${modulus}$?",
        (
            (
                f"The powers ${power(base, 0)}, {power(base, 1)}, {power(base, 2)}, \\ldots$ "
                f"leave the remainders ${', '.join(map(str, cycle))}$, "
                f"which repeat with period ${period}$."
            ),
            (
                f"Since ${exponent} = {exponent // period} \\cdot {period} + {place}$, "
                f"the remainder is that of ${power(base, place)}$, which is $[result]$."
            ),
        ),
        str(pow(base, exponent, modulus)),
    )


def number_of_divisors(rng: Random) -> Problem:
    """The number of divisors from the prime factors."""
    primes = sorted(rng.sample((2, 3, 5, 7, 11), rng.randint(2, 3)))
    exponents = [rng.randint(1, 4 if prime < 4 else 2) for prime in primes]
    number = math.prod(prime**exponent for prime, exponent in zip(primes, exponents, strict=True))
    factors = " \\cdot ".join(
        str(prime) if exponent == 1 else power(prime, exponent)
        for prime, exponent in zip(primes, exponents, strict=True)
    )
    counts = [exponent + 1 for exponent in exponents]
    product = " \\cdot ".join(f"({exponent} + 1)" for exponent in exponents)
    return Problem(
        NUMBER_THEORY,
        3,
        f"How many positive divisors does ${number}$ have?",
        (
            f"The prime factorization is ${number} = {factors}$.",
            f"The number of divisors is ${product} = [result]$.",
        ),
        str(math.prod(counts)),
    )


def number_base(rng: Random) -> Problem:
    """A number of another base in base ten."""
    base, length = rng.randint(2, 8), rng.randint(3, 4)
    digits = [rng.randint(1, base - 1), *(rng.randrange(base) for _ in range(length - 1))]
    terms = [
        f"{digit} \\cdot {power(base, length - 1 - place)}" for place, digit in enumerate(digits)
    ]
    value = int("".join(map(str, digits)), base)
    return Problem(
        NUMBER_THEORY,
        3,
        f"Write the base-${base}$ number ${''.join(map(str, digits))}_{{{base}}}$ in base $10$.",
        (f"Its value is ${' + '.join(terms)} = [result]$.",),
        str(value),
    )


NUMBER_PROBLEMS = (
    order_of_operations,
    adding_fractions,
    percentage,
    average,
    sharing_by_ratio,
    journey,
    greatest_common_divisor,
    least_common_multiple,
    remainder_of_power,
    number_of_divisors,
    number_base,
)
