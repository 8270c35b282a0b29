"""Topics of science, nature, technology and mathematics for longer talks.

Each topic is a name and five sentences: what it is, how it works, an example, why it matters and
something surprising.
"""

from __future__ import annotations

from tools.samples.topics import read_topics

SCIENCE_TOPICS = read_topics(
    "science",
    """
    photosynthesis
    Photosynthesis is the way in which green plants make sugar from light, water and air.
    The leaves catch sunlight and use its energy to join water with a gas from the air.
    An apple tree makes the sugar in its apples in this way.
    Nearly all food on Earth begins with it, and it gives us the oxygen that we breathe.
    A large part of the oxygen comes from tiny plants in the sea.

    gravity
    Gravity is the force that pulls all things with mass towards each other.
    The more mass a thing has and the nearer it is, the stronger is the pull.
    A ball that you throw up comes down again because the Earth pulls it.
    It keeps the Moon near the Earth and the Earth near the Sun.
    On the Moon you could jump about six times as high as at home.

    evolution
    Evolution is the slow change of living things over many generations.
    Those that fit their world well have more young, and their traits become more common.
    Mice that live on dark ground are often darker than mice that live on sand.
    It explains why there are so many different kinds of animals and plants.
    Whales come from animals that once walked on land.

    the water cycle
    The water cycle is the journey of water between the sea, the air and the land.
    The Sun warms the water, it rises as vapour, forms clouds and falls as rain.
    A puddle that dries in the morning may come back as rain in the evening.
    It brings fresh water to rivers, fields and people.
    The water that you drink today may once have been in a frozen river.

    electricity
    Electricity is the flow of tiny charged particles through a material.
    A battery pushes the particles through a wire, and a lamp turns their energy into light.
    When you press a switch, you close the path and the lamp goes on.
    Light, machines and telephones in our homes need it.
    Some fish can make electricity to find their food.

    magnetism
    Magnetism is a force with which magnets pull iron and pull or push each other.
    Each magnet has two poles, and only poles that are different pull each other.
    The needle of a compass turns because the Earth itself is a large magnet.
    Motors and loudspeakers could not work without it.
    Some birds feel the magnetism of the Earth and find their way with it.

    atoms
    Atoms are the tiny parts of which all things are made.
    Each atom has a heavy core, and light particles move around it.
    Water is made of two kinds of atoms, called hydrogen and oxygen.
    Knowing the atoms tells us why materials are hard, soft, clear or dark.
    A grain of sand has more atoms than there are stars that you can see.

    vaccines
    Vaccines are medicines that teach the body to fight an illness before it comes.
    They show the body a harmless part of the germ, so that it learns to know it.
    Children get a vaccine against measles, and later they do not catch it.
    They protect many people, also those who are too weak to get one.
    The word comes from the Latin word for cow.

    earthquakes
    Earthquakes are shakes of the ground when rocks deep below suddenly move.
    Large plates of rock press against each other until they slip.
    Japan has many earthquakes because several plates meet there.
    Knowing where they happen helps people to build safe houses.
    Many earthquakes happen each day, but most are too weak to feel.

    volcanoes
    Volcanoes are mountains from which melted rock, ash and gas come out of the Earth.
    Hot rock rises from below, collects under the mountain and breaks out.
    The island of Iceland was built by volcanoes.
    Their ash can make the soil rich, but an eruption is dangerous.
    The tallest volcano that we know is not on Earth but on Mars.

    the Moon
    The Moon is a ball of rock that travels around the Earth.
    It shines only because the Sun lights it, and we see more or less of the lit side.
    At full moon the whole side that faces us is in the light.
    It pulls the water of the sea and so makes the tides.
    We always see the same side of it.

    whales
    Whales are large animals of the sea that breathe air and feed milk to their young.
    They come up, blow out old air and take in fresh air before they dive again.
    The blue whale is longer than two buses.
    They carry food for small sea plants from the deep to the light.
    Some whales sing songs that can be heard very far away.

    bees
    Bees are insects that visit flowers and carry pollen from one to another.
    They collect sweet juice, and in the hive they turn it into honey.
    An apple tree gives more fruit when bees visit its flowers.
    Without them many plants would have no fruit.
    Bees dance to tell the others where the flowers are.

    deserts
    Deserts are places where very little rain falls.
    The air above them is dry, so few clouds form and the heat leaves quickly at night.
    The Sahara is a hot desert in the north of Africa.
    Special plants and animals live only there.
    The largest desert of all is the cold land at the South Pole.

    rainbows
    Rainbows are bows of colour that we see when the Sun shines on drops of water.
    Each drop bends the light and splits it into its colours.
    You can make a small one with a garden hose when the Sun is behind you.
    They showed people that white light is made of many colours.
    From a plane you can see a rainbow as a full ring.

    the heart
    The heart is a muscle that pumps blood through the whole body.
    Its right side sends blood to the lungs, and its left side sends it to the rest.
    When you run, it beats faster because your legs need more oxygen.
    Without its work no part of the body would get food and air.
    It beats about a hundred thousand times each day.
    """,
)

TECHNOLOGY_TOPICS = read_topics(
    "technology",
    """
    the internet
    The internet is a worldwide net that joins computers so that they can exchange messages.
    Each message is cut into small packets that find their own way and are joined at the end.
    When you open a page, your computer asks another one far away for it.
    It lets people learn, trade and talk across the whole world.
    Most of the traffic between continents runs through cables on the sea floor.

    computers
    Computers are machines that follow long lists of simple instructions very fast.
    They store everything as ones and zeros and change them step by step.
    A pocket calculator is a small computer for numbers.
    They help to plan, to write, to draw and to search.
    The word was once used for people who did sums for their work.

    the printing press
    The printing press is a machine that presses ink from letters onto paper.
    Single metal letters are put together to a page, covered with ink and pressed.
    A page that took a writer a whole day could be printed in minutes.
    Books became cheap, and many more people learned to read.
    In China people printed with wooden blocks long before that.

    the steam engine
    The steam engine is a machine that turns the pressure of hot steam into movement.
    Steam pushes a piston in a tube, and the piston turns a wheel.
    The first trains were pulled by steam engines.
    It drove the factories of a whole age.
    A simple toy that turned by steam was known two thousand years ago.

    solar panels
    Solar panels are flat plates that turn sunlight into electricity.
    The light sets particles in the panel free, and they flow as a current.
    A panel on the roof can heat water and run the lamps of a house.
    They make power without smoke.
    They work better on a cool clear day than on a very hot one.

    bridges
    Bridges are buildings that carry a road over water, a valley or another road.
    An arch leads the weight to both sides, and cables can hold it from above.
    The old stone bridges of the Romans are arches.
    They save people long ways and join towns.
    On a warm day a long steel bridge is a little longer than on a cold day.

    the telephone
    The telephone is a device that carries voices over long distances.
    It turns sound into an electric signal and turns it back at the other end.
    When you call a friend, your voice arrives almost at once.
    It changed how families, doctors and shops work together.
    At first people were not sure what to say when they picked it up.

    clocks
    Clocks are devices that count regular movements to tell the time.
    A pendulum, a spring or a small crystal gives the beat.
    The crystal in a wrist watch moves more than thirty thousand times each second.
    Sailors needed good clocks to know where they were on the sea.
    The oldest clocks used the shadow of a stick.

    robots
    Robots are machines that sense their world and act in it on their own.
    Sensors tell them what is there, a program decides, and motors move them.
    A robot can clean the floor and turn when it meets a wall.
    They do work that is heavy, dull or dangerous.
    The word comes from a play and first meant hard work.

    maps
    Maps are drawings of a place as it is seen from above.
    A scale tells how much smaller the drawing is than the place.
    On a city map one centimetre may stand for a hundred metres.
    They help us to plan a way before we walk it.
    Every flat map of the whole Earth shows some lands too large.
    """,
)

MATHEMATICS_TOPICS = read_topics(
    "mathematics",
    """
    prime numbers
    Prime numbers are whole numbers above one that only one and they themselves divide.
    Each other whole number above one is a product of primes in exactly one way.
    The numbers 2, 3, 5, 7 and 11 are prime, but 9 is 3 times 3.
    They keep secret messages on the internet safe.
    There is no largest prime number.

    zero
    Zero is the number that stands for nothing at all.
    It also holds a place, so that we can tell 15 from 105.
    If you have two pears and eat both, you have zero pears.
    Without it our way of writing numbers would not work.
    The Romans had no sign for zero.

    fractions
    Fractions are numbers that tell how many parts of a whole we have.
    The lower number says into how many parts it is cut, the upper one how many we take.
    Half of a cake and two quarters of it are the same amount.
    We need them to share, to cook and to measure.
    Between any two fractions there is always another one.

    probability
    Probability is a number between zero and one that tells how likely something is.
    We divide the number of good cases by the number of all cases that are equally likely.
    A fair coin shows heads with probability one half.
    It helps with weather, games and insurance.
    Among twenty-three people it is likely that two have the same birthday.
    """,
)
