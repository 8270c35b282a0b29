"""General knowledge: countries, animals, words, jobs, tools, time and nature."""

from __future__ import annotations

from functools import cache

from tools.samples.phrases import DAYS, MONTHS, NUMBER_WORDS, Word
from tools.samples.relations import Relation, following, relation

RELATIONS: tuple[Relation, ...] = (
    relation(
        "country capital continent",
        """France, Paris, Europe; Japan, Tokyo, Asia; Spain, Madrid, Europe;
        Egypt, Cairo, Africa; Italy, Rome, Europe; China, Beijing, Asia;
        Germany, Berlin, Europe; Kenya, Nairobi, Africa; England, London, Europe;
        Peru, Lima, South America; Greece, Athens, Europe; Canada, Ottawa, North America;
        Portugal, Lisbon, Europe; Cuba, Havana, North America; Sweden, Stockholm, Europe;
        Norway, Oslo, Europe""",
        """
        What is the capital of {country}? | The capital of {country} is {capital}.
        Which city is the capital of {country}? | {capital} is the capital of {country}.
        Tell me the capital of {country}. | The capital of {country} is {capital}.
        Name the capital city of {country}. | The capital city of {country} is {capital}.
        Do you know the capital of {country}? | Yes, the capital of {country} is {capital}.
        {capital} is the capital of which country? | {capital} is the capital of {country}.
        Which country has {capital} as its capital? | {country} has {capital} as its capital.
        In which country is {capital}? | {capital} is in {country}.
        Where is the city of {capital}? | The city of {capital} is in {country}.
        Is {capital} the capital of {country}? | Yes, {capital} is the capital of {country}.
        Is {not_capital} the capital of {country}? | No, the capital of {country} is {capital}.
        On which continent is {country}? | {country} is in {continent}.
        Is {country} in {not_continent}? | No, {country} is in {continent}.
        """,
    ),
    relation(
        "country language",
        """France, French; Spain, Spanish; Italy, Italian; Germany, German; England, English;
        Portugal, Portuguese; Greece, Greek; Sweden, Swedish; Norway, Norwegian; Egypt, Arabic;
        Japan, Japanese; China, Chinese""",
        """
        What language do people speak in {country}? | People in {country} speak {language}.
        Which language is spoken in {country}? | In {country} people speak {language}.
        In which country do people speak {language}? | People speak {language} in {country}.
        Tell me the language of {country}. | The language of {country} is {language}.
        What is the language of {country}? | The language of {country} is {language}.
        Do people in {country} speak {not_language}? | No, people in {country} speak {language}.
        """,
    ),
    relation(
        "thing colour",
        """grass, green; snow, white; blood, red; coal, black; milk, white; chocolate, brown;
        the sky, blue; the sun, yellow; an elephant, grey; a banana, yellow; a tomato, red;
        a carrot, orange; a frog, green; a bear, brown; the night, black""",
        """
        What colour is {thing}? | {thing} is {colour}.
        What is the colour of {thing}? | The colour of {thing} is {colour}.
        Tell me the colour of {thing}. | The colour of {thing} is {colour}.
        Which colour does {thing} have? | {thing} is {colour}.
        Is {thing} {colour} or {not_colour}? | {thing} is {colour}.
        Is it true that {thing} is {colour}? | Yes, {thing} is {colour}.
        Is it true that {thing} is {not_colour}? | No, {thing} is {colour}.
        """,
    ),
    relation(
        "animal sound legs young",
        """dog, barks, four, puppy; bird, sings, two, chick; cat, meows, four, kitten;
        duck, quacks, two, duckling; cow, moos, four, calf; hen, clucks, two, chick;
        sheep, bleats, four, lamb; bee, buzzes, six, larva; horse, neighs, four, foal;
        pig, grunts, four, piglet; lion, roars, four, cub; frog, croaks, four, tadpole""",
        """
        What sound does {animal:a} make? | {animal:A} {sound}.
        What does {animal:a} do when it makes a sound? | {animal:A} {sound}.
        Tell me the sound of {animal:a}. | {animal:A} {sound}.
        Is it true that {animal:a} {sound}? | Yes, {animal:a} {sound}.
        Is it true that {animal:a} {not_sound}? | No, {animal:a} {sound}.
        Which animal {sound}? | {animal:A} {sound}.
        Name an animal that {sound}. | {animal:A} {sound}.
        How many legs does {animal:a} have? | {animal:A} has {legs} legs.
        Tell me how many legs {animal:a} has. | {animal:A} has {legs} legs.
        Does {animal:a} have {legs} legs? | Yes, {animal:a} has {legs} legs.
        Does {animal:a} have {not_legs} legs? | No, {animal:a} has {legs} legs.
        What is a young {animal} called? | A young {animal} is called {young:a}.
        What do we call the young of {animal:a}? | We call a young {animal} {young:a}.
        Tell me what a young {animal} is called. | A young {animal} is called {young:a}.
        Is a young {animal} called {young:a}? | Yes, a young {animal} is called {young:a}.
        Is a young {animal} called {not_young:a}? | No, a young {animal} is called {young:a}.
        """,
    ),
    relation(
        "animal home food",
        """bird, a nest, seeds; bee, a hive, honey; fish, the water, small plants;
        cow, a field, grass; lion, the grassland, meat; camel, the desert, dry plants;
        rabbit, a hole, carrots; monkey, the trees, fruit; horse, a stable, hay;
        bear, the forest, berries; spider, a web, flies; frog, a pond, insects""",
        """
        Where does {animal:a} live? | {animal:A} lives in {home}.
        What is the home of {animal:a}? | The home of {animal:a} is {home}.
        What does {animal:a} eat? | {animal:A} eats {food}.
        What is the food of {animal:a}? | {animal:A} eats {food}.
        Tell me what {animal:a} eats. | {animal:A} eats {food}.
        Which animal lives in {home} and eats {food}? | {animal:A} lives in {home} and eats {food}.
        """,
    ),
    relation(
        "word opposite",
        """hot, cold; big, small; long, short; old, young; fast, slow; high, low; wet, dry;
        open, closed; happy, sad; light, dark; hard, soft; strong, weak; full, empty; clean, dirty;
        rich, poor; early, late; good, bad; loud, quiet""",
        """
        What is the opposite of {word}? | The opposite of {word} is {opposite}.
        What is the opposite of {opposite}? | The opposite of {opposite} is {word}.
        Give me the opposite of {word}. | The opposite of {word} is {opposite}.
        Give me the opposite of {opposite}. | The opposite of {opposite} is {word}.
        Which word means the opposite of {word}? | {opposite:c} means the opposite of {word}.
        Which word means the opposite of {opposite}? | {word:c} means the opposite of {opposite}.
        Are {word} and {opposite} opposites? | Yes, {word} and {opposite} are opposites.
        Is {not_word} the opposite of {opposite}? | No, the opposite of {opposite} is {word}.
        """,
    ),
    relation(
        "thing material",
        """window, glass; table, wood; knife, metal; tire, rubber; book, paper; scarf, wool;
        shirt, cotton; shoe, leather; ring, gold; wall, stone; candle, wax; coin, metal""",
        """
        What is {thing:a} made of? | {thing:A} is made of {material}.
        Of what material is {thing:a}? | {thing:A} is made of {material}.
        Tell me what {thing:a} is made of. | {thing:A} is made of {material}.
        Do you know what {thing:a} is made of? | {thing:A} is made of {material}.
        Is {thing:a} made of {material} or {not_material}? | {thing:A} is made of {material}.
        Name a thing that is made of {material}, like {thing:a}. | {thing:A} is made of {material}.
        """,
    ),
    relation(
        "product source",
        """milk, cows; eggs, hens; honey, bees; wool, sheep; bread, flour; cheese, milk;
        wine, grapes; paper, wood; juice, fruit; glass, sand""",
        """
        What do we get {product} from? | We get {product} from {source}.
        Where do people get {product} from? | People get {product} from {source}.
        Tell me where we get {product} from. | We get {product} from {source}.
        From what do people get {product}? | People get {product} from {source}.
        Is it true that we get {product} from {source}? | Yes, we get {product} from {source}.
        Do we get {product} from {not_source}? | No, we get {product} from {source}.
        """,
    ),
    relation(
        "job task place",
        """baker, bakes bread, in a bakery; doctor, helps sick people, in a hospital;
        teacher, teaches children, in a school; farmer, grows corn, on a farm;
        pilot, flies a plane, in the air; cook, makes food, in a kitchen;
        sailor, sails the sea, on a ship; painter, paints pictures, in a studio;
        gardener, grows flowers, in a garden; driver, drives a bus, on the road;
        singer, sings songs, in a theatre; writer, writes books, at a desk""",
        """
        What does {job:a} do? | {job:A} {task}.
        What is the work of {job:a}? | {job:A} {task}.
        Tell me what {job:a} does. | {job:A} {task}.
        Who {task}? | {job:A} {task}.
        What do we call a person who {task}? | A person who {task} is {job:a}.
        Where does {job:a} work? | {job:A} works {place}.
        Tell me where {job:a} works. | {job:A} works {place}.
        Is it true that {job:a} {not_task}? | No, {job:a} {task}.
        """,
    ),
    relation(
        "tool use",
        """hammer, drive nails; saw, cut wood; needle, sew clothes; knife, cut bread;
        spoon, eat soup; broom, sweep the floor; pen, write letters; key, open a door;
        clock, tell the time; oven, bake bread; brush, paint a wall; ladder, climb high;
        lamp, make light; map, find the way; telephone, call a friend; cup, drink tea""",
        """
        What do we use {tool:a} for? | We use {tool:a} to {use}.
        What is {tool:a} for? | {tool:A} is used to {use}.
        Why do people need {tool:a}? | People need {tool:a} to {use}.
        What do we need to {use}? | We need {tool:a} to {use}.
        Which thing helps us to {use}? | {tool:A} helps us to {use}.
        How can I {use}? | You can {use} with {tool:a}.
        """,
    ),
    relation(
        "planet place feature",
        """Mercury, first, is nearest to the Sun; Venus, second, is the hottest;
        Earth, third, is our home; Mars, fourth, is red; Jupiter, fifth, is the biggest;
        Saturn, sixth, has bright rings; Uranus, seventh, lies on its side;
        Neptune, eighth, is farthest from the Sun""",
        """
        Which planet is the {place} from the Sun? | {planet} is the {place} planet from the Sun.
        What is the {place} planet from the Sun? | The {place} planet from the Sun is {planet}.
        From the Sun, which place has {planet}? | {planet} is the {place} planet from the Sun.
        Which planet {feature}? | {planet} is the planet that {feature}.
        Name the planet that {feature}. | The planet that {feature} is {planet}.
        What is special about the planet {planet}? | {planet} is the planet that {feature}.
        What do you know about {planet}? | {planet} is the planet that {feature}.
        Is {planet} the {not_place} planet from the Sun? | No, {planet} is the {place} planet.
        """,
    ),
    relation(
        "earlier later",
        following(DAYS, last=True),
        """
        Which day comes after {earlier}? | {later} comes after {earlier}.
        Which day comes before {later}? | {earlier} comes before {later}.
        What is the day after {earlier}? | The day after {earlier} is {later}.
        What is the day before {later}? | The day before {later} is {earlier}.
        Today is {earlier}. What day is tomorrow? | Tomorrow is {later}.
        Today is {later}. What day was yesterday? | Yesterday was {earlier}.
        """,
    ),
    relation(
        "earlier later",
        following(MONTHS, last=True),
        """
        Which month comes after {earlier}? | {later} comes after {earlier}.
        Which month comes before {later}? | {earlier} comes before {later}.
        What is the month after {earlier}? | The month after {earlier} is {later}.
        What is the month before {later}? | The month before {later} is {earlier}.
        It is {earlier} now. What is the next month? | The next month is {later}.
        It is {later} now. What was the last month? | The last month was {earlier}.
        """,
    ),
    relation(
        "earlier later",
        following(NUMBER_WORDS[:13], last=False),
        """
        Which number comes after {earlier}? | {later} comes after {earlier}.
        Which number comes before {later}? | {earlier} comes before {later}.
        What is the number after {earlier}? | The number after {earlier} is {later}.
        What is the number before {later}? | The number before {later} is {earlier}.
        Which is more, {earlier} or {later}? | {later} is more than {earlier}.
        Which is less, {earlier} or {later}? | {earlier} is less than {later}.
        """,
    ),
    relation(
        "part use",
        """eyes, see; ears, hear; nose, smell; tongue, taste; hands, hold things; feet, walk;
        teeth, bite; head, think""",
        """
        What do we do with our {part}? | We {use} with our {part}.
        What are our {part} for? | We {use} with our {part}.
        With what do we {use}? | We {use} with our {part}.
        What do people need to {use}? | People need their {part} to {use}.
        Do we {use} with our {not_part}? | No, we {use} with our {part}.
        """,
    ),
    relation(
        "whole count part",
        """week, seven, days; year, twelve, months; hand, five, fingers; triangle, three, sides;
        square, four, sides; hour, sixty, minutes; minute, sixty, seconds; car, four, wheels;
        bike, two, wheels; spider, eight, legs; ant, six, legs; dozen, twelve, eggs""",
        """
        How many {part} does {whole:a} have? | {whole:A} has {count} {part}.
        {whole:A} has how many {part}? | {whole:A} has {count} {part}.
        Tell me how many {part} {whole:a} has. | {whole:A} has {count} {part}.
        Does {whole:a} have {count} {part}? | Yes, {whole:a} has {count} {part}.
        What is the number of {part} in {whole:a}? | {whole:A} has {count} {part}.
        Does {whole:a} have {not_count} {part}? | No, {whole:a} has {count} {part}.
        """,
    ),
    relation(
        "season weather activity",
        """spring, the flowers open, plant seeds; summer, it is hot, swim in the sea;
        autumn, the leaves fall, pick apples; winter, it is cold, play in the snow""",
        """
        What happens in {season}? | In {season} {weather}.
        What is {season} like? | In {season} {weather}.
        Which season is it when {weather}? | It is {season} when {weather}.
        What can people do in {season}? | In {season} people can {activity}.
        When do people {activity}? | People {activity} in {season}.
        In which season do people {activity}? | People {activity} in {season}.
        """,
    ),
    relation(
        "question statement reason",
        """do people sleep, people sleep, the body needs rest;
        do people eat, people eat, the body needs food;
        do plants need water, plants need water, they drink it with their roots;
        does ice float, ice floats, it is lighter than water;
        is it dark at night, it is dark at night, the Sun is on the other side of the Earth;
        do birds fly south, birds fly south, the winter is cold;
        do we wear a coat, we wear a coat, it keeps us warm;
        do we wash our hands, we wash our hands, clean hands keep us well;
        do bees visit flowers, bees visit flowers, they find sweet juice in them;
        do people read books, people read books, books teach us new things;
        do children go to school, children go to school, they learn to read and write there;
        does bread rise, bread rises, yeast fills it with air""",
        """
        Why {question}? | {statement:c} because {reason}.
        Can you tell me why {statement}? | {statement:c} because {reason}.
        Tell me why {statement}. | {statement:c} because {reason}.
        What is the reason that {statement}? | {statement:c} because {reason}.
        I wonder why {statement}. | {statement:c} because {reason}.
        """,
    ),
)


@cache
def fact_questions() -> tuple[tuple[str, str], ...]:
    """Every question about every fact with its answer, each question once."""
    answers: dict[str, str] = {}
    for known in RELATIONS:
        for question, answer in known.questions():
            answers.setdefault(question, answer)
    return tuple(answers.items())


@cache
def known_pairs(thing: str, value: str) -> tuple[tuple[Word, Word], ...]:
    """Two fields of the relation that has both of them."""
    known = next(known for known in RELATIONS if {thing, value} <= set(known.fields))
    columns = known.fields.index(thing), known.fields.index(value)
    return tuple((Word(fact[columns[0]]), Word(fact[columns[1]])) for fact in known.facts)
