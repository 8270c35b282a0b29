"""Problems of geometry and precalculus."""

from __future__ import annotations

import math
from random import Random

from tools.samples.math_text import Problem, complex_number, in_brackets
from tools.samples.phrases import PEOPLE, Word

GEOMETRY = "Geometry"
PRECALCULUS = "Precalculus"

TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41))
POLYGONS = {5: "pentagon", 6: "hexagon", 8: "octagon", 9: "nonagon", 10: "decagon"}
HALVES = {30: "\\sin", 60: "\\cos", 150: "\\sin"}


def scaled_triple(rng: Random) -> tuple[int, int, int]:
    """The sides of a right triangle, the longest last."""
    scale = rng.randint(1, 8)
    a, b, c = (scale * side for side in rng.choice(TRIPLES))
    return (a, b, c) if rng.random() < 0.5 else (b, a, c)


def rectangle(rng: Random) -> Problem:
    """The area or the perimeter of a rectangle."""
    length, width = sorted(rng.sample(range(2, 41), 2), reverse=True)
    thing = Word(rng.choice(("garden", "room", "field", "carpet", "table")))
    given = f"{thing:A} has the shape of a rectangle. It is ${length}$ long and ${width}$ wide."
    if rng.random() < 0.5:
        return Problem(
            GEOMETRY,
            1,
            f"{given} What is its area?",
            (f"The area is the length times the width: ${length} \\cdot {width} = [result]$.",),
            str(length * width),
        )
    return Problem(
        GEOMETRY,
        1,
        f"{given} What is its perimeter?",
        (
            (
                f"The perimeter is twice the sum of the sides: "
                f"$2 \\cdot ({length} + {width}) = 2 \\cdot {length + width} = [result]$."
            ),
        ),
        str(2 * (length + width)),
    )


def right_triangle(rng: Random) -> Problem:
    """A missing side of a right triangle."""
    a, b, c = scaled_triple(rng)
    if rng.random() < 0.5:
        return Problem(
            GEOMETRY,
            2,
            f"The legs of a right triangle are ${a}$ and ${b}$. How long is the hypotenuse?",
            (
                f"By Pythagoras, $c^2 = {a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}$.",
                f"So $c = \\sqrt{{{c * c}}} = [result]$.",
            ),
            str(c),
        )
    return Problem(
        GEOMETRY,
        3,
        f"A ladder of length ${c}$ leans on a wall. Its foot is ${a}$ away from the wall. "
        "How high does it reach?",
        (
            f"By Pythagoras, $h^2 = {c}^2 - {a}^2 = {c * c} - {a * a} = {b * b}$.",
            f"So $h = \\sqrt{{{b * b}}} = [result]$.",
        ),
        str(b),
    )


def circle(rng: Random) -> Problem:
    """The area or the circumference of a circle."""
    radius = rng.randint(2, 30)
    thing = Word(rng.choice(("plate", "pond", "coin", "wheel", "circle")))
    if rng.random() < 0.5:
        return Problem(
            GEOMETRY,
            2,
            f"{thing:A} has the radius ${radius}$. What is its area in terms of $\\pi$?",
            (f"The area is $\\pi r^2 = \\pi \\cdot {radius}^2 = [result]$.",),
            f"{radius * radius}\\pi",
        )
    return Problem(
        GEOMETRY,
        2,
        f"{thing:A} has the diameter ${2 * radius}$. What is its circumference in terms of $\\pi$?",
        (f"The circumference is $\\pi d = \\pi \\cdot {2 * radius} = [result]$.",),
        f"{2 * radius}\\pi",
    )


def triangle_angle(rng: Random) -> Problem:
    """The third angle of a triangle."""
    first = rng.randint(20, 100)
    second = rng.randint(20, 150 - first)
    return Problem(
        GEOMETRY,
        1,
        f"Two angles of a triangle are ${first}^\\circ$ and ${second}^\\circ$. "
        "How large is the third angle in degrees?",
        (
            "The angles of a triangle add up to $180$ degrees.",
            f"So the third angle is $180 - {first} - {second} = [result]$ degrees.",
        ),
        str(180 - first - second),
    )


def polygon_angles(rng: Random) -> Problem:
    """The sum of the angles of a polygon, or one of them."""
    sides = rng.choice(tuple(POLYGONS))
    total = 180 * (sides - 2)
    number = rng.randint(2, 6)
    base = rng.choice((3, 4, 12, 15, 18, 20, sides))
    if rng.random() < 0.5:
        return Problem(
            GEOMETRY,
            3,
            f"What is the perimeter of a regular {POLYGONS[sides]} with side length ${base}$?",
            (f"It has ${sides}$ equal sides, so it is ${sides} \\cdot {base} = [result]$.",),
            str(sides * base),
        )
    return Problem(
        GEOMETRY,
        3,
        f"The angles of ${number}$ polygons, each of them {Word(POLYGONS[sides]):a}, are added. "
        "What is the sum in degrees?",
        (
            f"The angles of one {POLYGONS[sides]} add up to $180 \\cdot ({sides} - 2) = {total}$.",
            f"So the sum is ${number} \\cdot {total} = [result]$.",
        ),
        str(number * total),
    )


def box_volume(rng: Random) -> Problem:
    """The volume or the surface of a box."""
    a, b, c = (rng.randint(2, 12) for _ in range(3))
    if rng.random() < 0.6:
        return Problem(
            GEOMETRY,
            2,
            f"A box is ${a}$ long, ${b}$ wide and ${c}$ high. What is its volume?",
            (f"The volume is ${a} \\cdot {b} \\cdot {c} = [result]$.",),
            str(a * b * c),
        )
    return Problem(
        GEOMETRY,
        4,
        f"A box is ${a}$ long, ${b}$ wide and ${c}$ high. What is its surface area?",
        (
            (
                f"Its faces have the areas ${a} \\cdot {b} = {a * b}$, ${b} \\cdot {c} = {b * c}$ "
                f"and ${a} \\cdot {c} = {a * c}$, each of them twice."
            ),
            f"So the surface is $2 \\cdot ({a * b} + {b * c} + {a * c}) = [result]$.",
        ),
        str(2 * (a * b + b * c + a * c)),
    )


def distance(rng: Random) -> Problem:
    """The distance between two points with a whole result."""
    dx, dy, length = scaled_triple(rng)
    x, y = rng.randint(-9, 9), rng.randint(-9, 9)
    return Problem(
        GEOMETRY,
        3,
        f"What is the distance between $({x}, {y})$ and $({x + dx}, {y + dy})$?",
        (
            f"The points differ by ${dx}$ and ${dy}$.",
            (
                f"So the distance is $\\sqrt{{{dx}^2 + {dy}^2}} = "
                f"\\sqrt{{{length * length}}} = [result]$."
            ),
        ),
        str(length),
    )


def column(vector: list[int]) -> str:
    """A vector as a column."""
    entries = " \\\\ ".join(map(str, vector))
    return f"\\begin{{pmatrix}} {entries} \\end{{pmatrix}}"


def dot_product(rng: Random) -> Problem:
    """The dot product of two vectors."""
    first, second = ([rng.randint(-6, 9) for _ in range(3)] for _ in range(2))
    shown = [column(vector) for vector in (first, second)]
    pairs = list(zip(first, second, strict=True))
    terms = " + ".join(f"{in_brackets(a)} \\cdot {in_brackets(b)}" for a, b in pairs)
    return Problem(
        PRECALCULUS,
        2,
        f"Compute the dot product ${shown[0]} \\cdot {shown[1]}$.",
        (f"We multiply the entries and add the products: ${terms} = [result]$.",),
        str(sum(a * b for a, b in pairs)),
    )


def determinant(rng: Random) -> Problem:
    """The determinant of a small matrix."""
    a, b, c, d = (rng.randint(-7, 9) for _ in range(4))
    return Problem(
        PRECALCULUS,
        2,
        f"Find the determinant of $\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{pmatrix}}$.",
        (
            (
                f"The determinant is ${in_brackets(a)} \\cdot {in_brackets(d)} - "
                f"{in_brackets(b)} \\cdot {in_brackets(c)} = "
                f"{a * d} - {in_brackets(b * c)} = [result]$."
            ),
        ),
        str(a * d - b * c),
    )


def modulus(rng: Random) -> Problem:
    """The absolute value of a complex number with a whole result."""
    a, b, c = scaled_triple(rng)
    real, imaginary = a * rng.choice((-1, 1)), b * rng.choice((-1, 1))
    return Problem(
        PRECALCULUS,
        3,
        f"Find $|{complex_number(real, imaginary)}|$.",
        (
            f"We have $|{complex_number(real, imaginary)}| = \\sqrt{{{a}^2 + {b}^2}}$.",
            f"This is $\\sqrt{{{c * c}}} = [result]$.",
        ),
        str(c),
    )


def half_values(rng: Random) -> Problem:
    """A term with a sine or cosine that is one half."""
    angle = rng.choice(tuple(HALVES))
    name = HALVES[angle]
    factor, summand = 2 * rng.randint(1, 15), rng.randint(1, 20)
    return Problem(
        PRECALCULUS,
        3,
        f"Compute ${factor} {name} {angle}^\\circ + {summand}$.",
        (
            f"We know that ${name} {angle}^\\circ = \\frac{{1}}{{2}}$.",
            f"So the value is ${factor} \\cdot \\frac{{1}}{{2}} + {summand} = [result]$.",
        ),
        str(factor // 2 + summand),
    )


def polar_area(rng: Random) -> Problem:
    """The area of a sector from its angle in radians."""
    radius, parts = rng.randint(2, 15), rng.choice((2, 3, 4, 6))
    person = rng.choice(PEOPLE).name
    area = fraction_of_pi(radius * radius, 2 * parts)
    return Problem(
        PRECALCULUS,
        4,
        f"{person} cuts a sector with the angle $\\frac{{\\pi}}{{{parts}}}$ from a circle "
        f"of radius ${radius}$. What is the area of the sector?",
        (
            "The area of a sector is $\\frac{1}{2} r^2 \\theta$.",
            (
                f"So it is $\\frac{{1}}{{2}} \\cdot {radius}^2 \\cdot "
                f"\\frac{{\\pi}}{{{parts}}} = [result]$."
            ),
        ),
        area,
    )


def fraction_of_pi(numerator: int, denominator: int) -> str:
    """A multiple of pi in lowest terms."""
    common = math.gcd(numerator, denominator)
    top, bottom = numerator // common, denominator // common
    symbol = "\\pi" if top == 1 else f"{top}\\pi"
    return symbol if bottom == 1 else f"\\frac{{{symbol}}}{{{bottom}}}"


SHAPE_PROBLEMS = (
    rectangle,
    right_triangle,
    circle,
    triangle_angle,
    polygon_angles,
    box_volume,
    distance,
    dot_product,
    determinant,
    modulus,
    half_values,
    polar_area,
)
