"""Topics of history, art, cooking, sport, thought, places and daily life for longer talks.

Each topic is a name and five sentences: what it is, how it works, an example, why it matters and
something surprising.
"""

from __future__ import annotations

from tools.samples.topics import read_topics

HISTORY_TOPICS = read_topics(
    "history",
    """
    the pyramids
    The pyramids are huge stone graves that were built for the kings of old Egypt.
    Workers cut blocks of stone, moved them on boats and sledges and set them row upon row.
    The largest one stands near Cairo and is more than four thousand years old.
    They tell us how well people could plan and work together at that time.
    When they were new, they shone in white because of their smooth cover.

    the Roman roads
    The Roman roads are stone roads that joined the cities of the Roman Empire.
    Layers of sand and stone kept them dry, and they ran as straight as possible.
    The Appian Way leads from Rome to the south of Italy.
    They carried soldiers, letters and goods over long distances.
    Some roads of today still follow their lines.

    the Silk Road
    The Silk Road is a net of old trade ways between China and the Mediterranean Sea.
    Goods went from market to market, so few traders made the whole journey.
    Silk, paper and spices came to the west, glass and gold to the east.
    With the goods came ideas, songs and beliefs.
    It was not one road, and a part of it went by ship.

    castles
    Castles are strong houses with walls and towers in which lords lived and defended themselves.
    Thick walls, a gate and often a ditch with water kept enemies out.
    The castle of Windsor in England is still used today.
    They protected the land and showed the power of their owners.
    Many of them were cold and dark inside, even in summer.

    the Vikings
    The Vikings are the sailors of the north who travelled far about a thousand years ago.
    Their long ships were light, so they could sail on the sea and on rivers.
    Leif Erikson sailed to North America long before Columbus.
    They traded and settled from Greenland to Russia.
    They did not wear horns on their helmets.

    the Renaissance
    The Renaissance is a time in which people in Europe looked anew at old art and science.
    Rich cities paid artists and scholars, and printed books spread their ideas.
    Leonardo da Vinci painted, drew machines and studied the human body.
    It changed how people built, painted and thought.
    The name means that something is born again.

    the first writing
    The first writing is the set of signs that people pressed into soft clay long ago.
    A sign stood for a thing at first and later for a sound.
    Lists of sheep and grain from old cities show how it began.
    It keeps knowledge alive when those who had it are gone.
    It was made for counting goods and not for stories.

    the Olympic Games of old
    The Olympic Games of old are the contests that were held in Greece every four years.
    Runners and fighters came from many cities, and wars had to pause for the journey.
    The winner of a race was given a ring of olive leaves.
    They joined people who were often enemies.
    At the first games there was only a single race.
    """,
)

CULTURE_TOPICS = read_topics(
    "culture",
    """
    the violin
    The violin is a small instrument of wood with four strings.
    A bow makes the strings shake, and the body of wood makes the sound louder.
    In an orchestra the violins often play the melody.
    It can sound like a human voice and carry deep feelings.
    Its bow is made with the hair of horses.

    theatre
    Theatre is the art of playing a story in front of people.
    Actors learn their words, and light, clothes and music help to show the place.
    The plays of Shakespeare are still played in many languages.
    It lets us look at our own life from outside.
    In old Greece a single actor played several roles with masks.

    poetry
    Poetry is the art of saying much with few and well chosen words.
    Rhythm, rhyme and pictures give the words a special sound and feeling.
    A haiku from Japan needs only three short lines.
    It can say what is hard to say in plain words.
    Long poems were learned by heart before people could write.

    jazz
    Jazz is a kind of music in which the players invent a part while they play.
    One player leads for a while, and the others answer and keep the beat.
    Louis Armstrong played the trumpet and sang in a rough and warm voice.
    It brought together songs from Africa and Europe.
    Two concerts with the same song are never quite the same.

    painting
    Painting is the art of making pictures with colour on a flat ground.
    Light and dark, warm and cold colours lead the eye through the picture.
    Van Gogh painted a night sky full of turning stars.
    It shows how people saw their world.
    Blue paint was once more expensive than gold.

    fairy tales
    Fairy tales are old stories in which wonders happen.
    They were told again and again, and each teller changed a little.
    In many of them the youngest child wins with a kind heart.
    They teach children to hope and to be brave.
    The story of Cinderella is told in many parts of the world.

    chess
    Chess is a game for two players on a board with sixty-four squares.
    Each piece moves in its own way, and the goal is to catch the other king.
    A knight is the only piece that can jump over others.
    It trains the mind to plan and to be patient.
    There are more possible games than grains of sand on Earth.
    """,
)

COOKING_TOPICS = read_topics(
    "cooking",
    """
    bread
    Bread is a food made of flour, water, salt and often yeast.
    Yeast makes gas, the dough rises, and the oven makes the crust hard.
    A flat bread needs no yeast and is ready in minutes.
    It has fed people for thousands of years.
    Old bread gets better again when it is warmed with a little water.

    cheese
    Cheese is a food that is made of thick and often ripe milk.
    The milk is made sour, the water runs off, and the rest rests for days or years.
    Hard cheese from the mountains rests for many months.
    It keeps the good things of milk for a long time.
    The holes in some kinds come from gas inside.

    soup
    Soup is a warm dish that is cooked in much water.
    Slow heat brings the taste of vegetables, meat and herbs into the water.
    For a potato soup you need potatoes, an onion, water and salt.
    It is cheap, it warms and it uses what is left.
    In some countries people eat cold soup in summer.

    rice
    Rice is the seed of a grass that grows best in wet fields.
    In hot water the grains drink about twice their own weight and become soft.
    A risotto from Italy is rice that is stirred in warm broth.
    It is the daily food of about half of all people.
    There are thousands of kinds, also black and red ones.

    chocolate
    Chocolate is a sweet food that is made of the beans of the cocoa tree.
    The beans are dried, roasted and ground, then mixed with sugar and often milk.
    Dark chocolate has much cocoa and less sugar.
    Many farmers in Africa and America live from its beans.
    At first it was a bitter drink.

    spices
    Spices are dried parts of plants that give food its taste.
    Heat sets their oils free, so many cooks warm them before use.
    Pepper, ginger and cinnamon are known everywhere.
    They once made long journeys by ship worth the danger.
    Vanilla is the fruit of a flower called orchid.
    """,
)

SPORT_TOPICS = read_topics(
    "sport",
    """
    football
    Football is a game in which two teams try to bring a ball into the goal of the other.
    Eleven players on each side use their feet and heads, and only the keeper may use the hands.
    A pass behind the other team often leads to a goal.
    It needs only a ball, so it is played all over the world.
    Early balls were made from the skin of animals.

    swimming
    Swimming is the sport of moving through water with arms and legs.
    You push water back, and the water pushes you forward.
    In the crawl the arms turn one after the other.
    It trains the whole body and can save your life.
    The body weighs much less in the water.

    tennis
    Tennis is a game in which players hit a ball over a net with rackets.
    A point is won when the other cannot bring the ball back.
    At the start of each point one player serves.
    It trains speed, strength and attention.
    The points are counted as fifteen, thirty and forty.

    the marathon
    The marathon is a run over a little more than forty-two kilometres.
    Runners save their strength, drink on the way and keep an even pace.
    In Berlin and Boston many thousands of people run it each year.
    It shows what patient training can do.
    Its name comes from a town in Greece.

    climbing
    Climbing is the sport of going up rocks or walls with hands and feet.
    The legs carry the weight, and a rope holds the climber in a fall.
    In a hall the coloured grips show the way.
    It trains trust, strength and clear thinking.
    Good climbers can hang on a ledge that is as thin as a pencil.
    """,
)

THOUGHT_TOPICS = read_topics(
    "philosophy",
    """
    logic
    Logic is the study of how one statement follows from others.
    It looks at the form of a thought and not at what the thought is about.
    If all birds have wings and a crow is a bird, then a crow has wings.
    It helps us to find mistakes in our reasons.
    A conclusion can follow well and still be false, when its start is false.

    justice
    Justice is the idea that each person should get what is fair.
    People ask whether a rule would still seem good if they did not know their own place.
    When one child cuts the cake and the other chooses, both will be content.
    It makes it possible to live together in peace.
    Even some monkeys protest when another gets a better reward.

    happiness
    Happiness is a state in which a person finds life good.
    Many thinkers say that it comes from what we do and not from what we own.
    Time with friends makes people happy for longer than a new coat.
    It gives us strength for difficult days.
    Helping others often makes the helper happier too.

    courage
    Courage is the will to do what is right although one is afraid.
    It lies in the middle between being a coward and being careless.
    A child that says the truth about a broken vase shows courage.
    It is needed whenever something new is begun.
    Those who are brave also feel fear.
    """,
)

PLACE_TOPICS = read_topics(
    "geography",
    """
    the Nile
    The Nile is a very long river in Africa that flows north into the sea.
    Rain in the mountains fills it, and it carries rich mud to the fields.
    Cairo, the capital of Egypt, lies on its banks.
    Without it most of Egypt would be a desert.
    It flows from south to north, although many think that rivers flow south.

    the Alps
    The Alps are high mountains in the middle of Europe.
    Two parts of the crust of the Earth press together and have lifted them.
    Their highest mountain is between France and Italy.
    Many great rivers begin in their snow.
    There are shells of sea animals in their rocks.

    islands
    Islands are pieces of land with water all around.
    Some are tops of mountains under the sea, others were cut off by rising water.
    Ireland is a large green island west of England.
    Special plants and animals live on many of them.
    The largest island of the world is Greenland.

    rain forests
    Rain forests are warm forests in which it rains nearly every day.
    High trees catch the light, and other plants live on their branches.
    The largest one lies along the Amazon in South America.
    More kinds of animals live there than anywhere else on land.
    Much of the rain there is made by the trees themselves.
    """,
)

DAILY_LIFE_TOPICS = read_topics(
    "daily life",
    """
    sleep
    Sleep is the rest in which the body repairs itself and the mind puts things in order.
    Light and deep phases follow each other several times in a night.
    After a good night it is easier to learn new words.
    Without it we become slow, sad and sick.
    Dolphins sleep with only one half of the brain at a time.

    money
    Money is a thing that all accept in exchange for goods and work.
    It works because each person trusts that others will take it too.
    A baker sells bread for coins and buys shoes with them.
    It makes trade much easier than giving sheep for shoes.
    Shells were once used as money in many places.

    recycling
    Recycling is the making of new things from old material.
    Waste is sorted, cleaned, broken up and made into something new.
    An old newspaper can become a box for eggs.
    It saves wood, metal and energy.
    Glass can be melted again and again and stays as good as new.

    gardens
    Gardens are pieces of land on which people grow plants that they like.
    Good soil, light and water let the plants grow, and care keeps weeds away.
    Beans climb up a stick, and carrots like loose sand.
    They give food, shade and quiet hours.
    A worm in the soil is one of the best helpers.

    learning a language
    Learning a language is the way to understand and to use words that were strange before.
    Short practice each day works better than one long lesson in a week.
    You can name the things in your kitchen in the new language.
    It opens the door to other people and their stories.
    Small children can learn two languages at once without mixing them for long.
    """,
)
