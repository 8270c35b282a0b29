"""Problems of algebra and intermediate algebra."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from tools.samples.math_text import (
    Problem,
    complex_number,
    fraction,
    in_brackets,
    polynomial,
    power,
)

ALGEBRA = "Algebra"
INTERMEDIATE = "Intermediate Algebra"


def nonzero(rng: Random, low: int, high: int) -> int:
    """A whole number of a range that is not zero."""
    return rng.choice([number for number in range(low, high + 1) if number != 0])


def linear_equation(rng: Random) -> Problem:
    """An equation with the unknown on one side."""
    factor, unknown, summand = rng.randint(2, 12), nonzero(rng, -9, 15), nonzero(rng, -20, 20)
    side = factor * unknown + summand
    moved = f"Subtracting ${summand}$ from" if summand > 0 else f"Adding ${-summand}$ to"
    variable = rng.choice("xyn")
    asked = rng.choice(("Solve", "Find the solution of", "For which value is it true that"))
    question = "?" if asked.startswith("For") else "."
    return Problem(
        ALGEBRA,
        1,
        f"{asked} ${polynomial([factor, summand], variable)} = {side}${question}",
        (
            f"{moved} both sides gives ${factor}{variable} = {side - summand}$.",
            f"Dividing by ${factor}$ gives ${variable} = [result]$.",
        ),
        str(unknown),
    )


def equation_on_both_sides(rng: Random) -> Problem:
    """An equation with the unknown on both sides."""
    low, difference = rng.randint(2, 8), rng.randint(2, 9)
    high, unknown, summand = low + difference, nonzero(rng, -9, 12), nonzero(rng, -15, 15)
    other = difference * unknown + summand
    left, right = polynomial([high, summand]), polynomial([low, other])
    return Problem(
        ALGEBRA,
        3,
        f"What is the value of $x$ if ${left} = {right}$?",
        (
            (
                f"Subtracting ${low}x$ from both sides gives "
                f"${polynomial([difference, summand])} = {other}$."
            ),
            f"So ${difference}x = {other - summand}$, and $x = [result]$.",
        ),
        str(unknown),
    )


def two_equations(rng: Random) -> Problem:
    """The sum and the difference of two numbers."""
    small, gap = rng.randint(1, 30), rng.randint(1, 30)
    large = small + gap
    wanted, sign, value = rng.choice((("larger", "+", large), ("smaller", "-", small)))
    total = large + small
    return Problem(
        ALGEBRA,
        2,
        f"The sum of two numbers is ${total}$ and their difference is ${gap}$. "
        f"What is the {wanted} number?",
        (
            f"Let $x + y = {total}$ and $x - y = {gap}$ with the larger number $x$.",
            f"Twice the {wanted} number is ${total} {sign} {gap} = {2 * value}$.",
            f"So the {wanted} number is $[result]$.",
        ),
        str(value),
    )


def function_value(rng: Random) -> Problem:
    """The value of a polynomial."""
    coefficients = [nonzero(rng, 1, 6), rng.randint(-7, 7), rng.randint(-9, 9)]
    place = nonzero(rng, -5, 6)
    first, second, third = coefficients
    value = first * place**2 + second * place + third
    name = rng.choice("fgh")
    shown = in_brackets(place)
    terms = [f"{first} \\cdot {shown}^2"]
    if second:
        terms.append(f"{in_brackets(second)} \\cdot {shown}")
    if third:
        terms.append(in_brackets(third))
    return Problem(
        ALGEBRA,
        2,
        f"Let ${name}(x) = {polynomial(coefficients)}$. What is ${name}({place})$?",
        (
            f"Putting in $x = {place}$ gives ${name}({place}) = {' + '.join(terms)}$.",
            f"So ${name}({place}) = [result]$.",
        ),
        str(value),
    )


def factored_quadratic(rng: Random) -> Problem:
    """The larger solution of a quadratic equation."""
    low, high = sorted(rng.sample([number for number in range(-9, 10) if number], 2))
    equation = polynomial([1, -(low + high), low * high])
    factors = "".join(f"({polynomial([1, -root])})" for root in (low, high))
    return Problem(
        ALGEBRA,
        3,
        f"What is the larger solution of ${equation} = 0$?",
        (
            f"The left side factors as ${factors}$.",
            f"So the solutions are ${low}$ and ${high}$, and the larger one is $[result]$.",
        ),
        str(high),
    )


def slope(rng: Random) -> Problem:
    """The slope of the line through two points."""
    (x, u), (y, v) = rng.sample(range(-9, 10), 2), (rng.randint(-9, 9), rng.randint(-9, 9))
    rise, run = v - y, u - x
    return Problem(
        ALGEBRA,
        2,
        f"What is the slope of the line through $({x}, {y})$ and $({u}, {v})$?",
        (
            (
                f"The rise is ${v} - {in_brackets(y)} = {rise}$ and "
                f"the run is ${u} - {in_brackets(x)} = {run}$."
            ),
            "The slope is the rise divided by the run, so it is $[result]$.",
        ),
        fraction(Fraction(rise, run)),
    )


def arithmetic_series(rng: Random) -> Problem:
    """The sum of an arithmetic series."""
    first, step, count = rng.randint(1, 20), rng.randint(2, 9), rng.randint(5, 30)
    last = first + (count - 1) * step
    shown = ", ".join(str(first + place * step) for place in range(3))
    return Problem(
        INTERMEDIATE,
        4,
        f"What is the sum of the first ${count}$ terms of the arithmetic sequence "
        f"${shown}, \\ldots$?",
        (
            f"The last of these terms is ${first} + {count - 1} \\cdot {step} = {last}$.",
            f"The sum is $\\frac{{{count} \\cdot ({first} + {last})}}{{2}} = [result]$.",
        ),
        str(count * (first + last) // 2),
    )


def geometric_series(rng: Random) -> Problem:
    """The sum of a geometric series."""
    first, ratio, count = rng.randint(1, 9), rng.randint(2, 4), rng.randint(3, 7)
    shown = ", ".join(str(first * ratio**place) for place in range(3))
    return Problem(
        INTERMEDIATE,
        4,
        f"What is the sum of the first ${count}$ terms of the geometric sequence "
        f"${shown}, \\ldots$?",
        (
            f"The first term is ${first}$ and the ratio is ${ratio}$.",
            (
                f"The sum is ${first} \\cdot \\frac{{{power(ratio, count)} - 1}}{{{ratio} - 1}} = "
                f"{first} \\cdot {(ratio**count - 1) // (ratio - 1)} = [result]$."
            ),
        ),
        str(first * (ratio**count - 1) // (ratio - 1)),
    )


def complex_product(rng: Random) -> Problem:
    """The product of two complex numbers."""
    a, b, c, d = (nonzero(rng, -6, 7) for _ in range(4))
    real, imaginary = a * c - b * d, a * d + b * c
    return Problem(
        INTERMEDIATE,
        3,
        f"Compute $({complex_number(a, b)})({complex_number(c, d)})$.",
        (
            (
                f"The real part is ${in_brackets(a)} \\cdot {in_brackets(c)} - "
                f"{in_brackets(b)} \\cdot {in_brackets(d)} = {real}$."
            ),
            (
                f"The imaginary part is ${in_brackets(a)} \\cdot {in_brackets(d)} + "
                f"{in_brackets(b)} \\cdot {in_brackets(c)} = {imaginary}$."
            ),
            "So the product is $[result]$.",
        ),
        complex_number(real, imaginary),
    )


def squares_of_roots(rng: Random) -> Problem:
    """The sum of the squares of the roots from the coefficients."""
    total, product = nonzero(rng, -9, 9), nonzero(rng, -9, 9)
    equation = polynomial([1, -total, product])
    return Problem(
        INTERMEDIATE,
        5,
        f"Let $r$ and $s$ be the roots of ${equation}$. Find $r^2 + s^2$.",
        (
            f"By Vieta's formulas, $r + s = {total}$ and $rs = {product}$.",
            (
                f"So $r^2 + s^2 = (r + s)^2 - 2rs = {total * total} - {in_brackets(2 * product)} = "
                "[result]$."
            ),
        ),
        str(total * total - 2 * product),
    )


def logarithm(rng: Random) -> Problem:
    """An equation with a logarithm."""
    base = rng.randint(2, 5)
    exponent = rng.randint(2, 6 if base == 2 else 3)
    summand = nonzero(rng, -9, 20)
    return Problem(
        INTERMEDIATE,
        3,
        f"Solve $\\log_{base} ({polynomial([1, summand])}) = {exponent}$.",
        (
            (
                f"The equation means ${polynomial([1, summand])} = {power(base, exponent)} = "
                f"{base**exponent}$."
            ),
            "So $x = [result]$.",
        ),
        str(base**exponent - summand),
    )


def remainder_theorem(rng: Random) -> Problem:
    """The remainder of a polynomial divided by a linear one."""
    coefficients = [nonzero(rng, 1, 4), *(rng.randint(-5, 5) for _ in range(3))]
    place = nonzero(rng, -3, 3)
    value = 0
    for coefficient in coefficients:
        value = value * place + coefficient
    return Problem(
        INTERMEDIATE,
        5,
        f"What is the remainder when ${polynomial(coefficients)}$ is divided by "
        f"${polynomial([1, -place])}$?",
        (
            f"By the remainder theorem, it is the value of the polynomial at $x = {place}$.",
            "This value is $[result]$.",
        ),
        str(value),
    )


ALGEBRA_PROBLEMS = (
    linear_equation,
    equation_on_both_sides,
    two_equations,
    function_value,
    factored_quadratic,
    slope,
    arithmetic_series,
    geometric_series,
    complex_product,
    squares_of_roots,
    logarithm,
    remainder_theorem,
)
