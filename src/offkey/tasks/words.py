"""Word lists that tasks draw from, written for this package."""

__all__ = [
    "ADJECTIVES_IN_ED",
    "ANTONYMS",
    "BIG_ANIMALS",
    "BIG_THINGS",
    "COLOURS",
    "NOUNS",
    "OBJECTS",
    "PAST_WITHOUT_ED",
    "PAST_WITH_ED",
    "PEOPLE",
    "PLACES",
    "PLURALS_IN_S",
    "PLURALS_OTHER",
    "PREPOSITIONS",
    "SINGULARS_IN_S",
    "SINGULARS_OTHER",
    "SMALL_ANIMALS",
    "SMALL_THINGS",
    "STATES",
]


def _list(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(separator) if word.strip())


NOUNS = _list(
    """
    apple anchor arrow axe bag ball banana basket bear bed bell bird blanket boat book bottle box
    bread bridge bucket button butterfly cake camera candle car carpet cat chair cheese chicken
    clock cloud coat coin cow cup curtain desk diamond dog door dragon dress drum duck eagle egg
    elephant engine fan feather fence finger fish flag flower fork fox frog garden gate giraffe
    glass glove goat grass guitar hammer hat honey horse house ice island jacket jar jewel key king
    kitchen kite knife ladder lamp leaf lemon letter lion lock magazine map milk mirror monkey moon
    mountain mouse nail needle nest newspaper nose ocean onion orange oven owl paint paper pen
    pencil piano picture pig pillow pipe plate potato pot queen rabbit radio rain ring river road
    rocket roof rope rose sail salt sand scissors shadow sheep ship shirt shoe snake snow soap sofa
    spider spoon star stone strawberry sugar sun sword table telephone tent thread tiger tomato
    tooth tower train tree truck trumpet turtle umbrella uncle vase vegetable violin wagon wall
    watch water wheel window wine wolf wood yarn zebra
    """
)

PEOPLE = _list(
    """
    teacher:teachers doctor:doctors farmer:farmers student:students sailor:sailors painter:painters
    dancer:dancers driver:drivers nurse:nurses writer:writers singer:singers lawyer:lawyers
    brother:brothers sister:sisters friend:friends neighbor:neighbors soldier:soldiers baker:bakers
    player:players guard:guards worker:workers manager:managers pilot:pilots actor:actors
    """
)
PLACES = _list(
    """
    cabinet:cabinets window:windows tree:trees house:houses car:cars table:tables river:rivers
    garden:gardens bridge:bridges tower:towers door:doors chair:chairs boat:boats truck:trucks
    fence:fences lamp:lamps wall:walls statue:statues horse:horses dog:dogs cow:cows tent:tents
    """
)
PREPOSITIONS = _list("near, behind, beside, next to, by", ",")
STATES = _list("tired happy old young late busy ready quiet sad rich angry hungry tall famous")

PAST_WITH_ED = _list(
    """
    walks:walked cooks:cooked plays:played washes:washed cleans:cleaned paints:painted
    watches:watched opens:opened closes:closed moves:moved likes:liked wants:wanted uses:used
    carries:carried follows:followed helps:helped visits:visited fixes:fixed
    """
)
PAST_WITHOUT_ED = _list(
    """
    buys:bought sells:sold finds:found takes:took gives:gave sees:saw brings:brought makes:made
    breaks:broke draws:drew eats:ate holds:held keeps:kept leaves:left loses:lost steals:stole
    wears:wore hides:hid
    """
)

COLOURS = _list("green blue black white yellow brown small large heavy cheap new long empty clean")
ADJECTIVES_IN_ED = _list(
    "red used damaged painted polished rusted faded cracked folded locked covered stained crooked"
)
OBJECTS = _list(
    "box table lamp car boat chair coat bag door cup plate carpet book basket drum bell mirror"
)

PLURALS_IN_S = _list(
    """
    dogs cats trees cars houses books cups tables chairs birds boats rivers apples horses doors
    windows flowers stars shoes hats keys pens roads clocks lamps eggs cows pigs ducks bottles
    """
)
PLURALS_OTHER = _list(
    """
    children men women mice geese teeth feet people oxen policemen firemen salesmen grandchildren
    gentlemen fishermen snowmen stepchildren businessmen businesswomen milkmen postmen
    schoolchildren
    """
)
SINGULARS_IN_S = _list(
    """
    bus glass dress class boss kiss cross grass gas lens virus cactus octopus circus walrus
    compass actress waitress princess hostess iris atlas campus bonus fungus genius
    chorus mattress
    """
)
SINGULARS_OTHER = _list(
    """
    dog cat tree car house book cup table chair bird boat river apple horse door window flower star
    shoe hat key pen road clock lamp egg cow pig duck bottle
    """
)

BIG_ANIMALS = _list(
    """
    elephant whale horse giraffe bear cow rhino hippo camel buffalo moose bull tiger lion elk
    gorilla crocodile shark bison walrus zebra yak
    """
)
SMALL_ANIMALS = _list(
    """
    mouse ant bee frog rat cat rabbit squirrel spider butterfly sparrow duck hamster snail worm fly
    mosquito beetle lizard crab chicken pigeon
    """
)
BIG_THINGS = _list(
    """
    house truck bus ship bridge tower train castle airplane building tank church mountain stadium
    ferry factory crane bulldozer tractor hotel skyscraper lighthouse
    """
)
SMALL_THINGS = _list(
    """
    spoon coin key pen button pencil ring needle cup fork nail stamp pebble bead match pin battery
    thimble screw marble envelope bolt
    """
)

ANTONYMS = _list(
    """
    open:closed hot:cold big:small old:new clean:dirty wet:dry full:empty heavy:light fast:slow
    hard:soft cheap:expensive dark:bright loud:quiet safe:dangerous rough:smooth thick:thin
    strong:weak wide:narrow
    """
)
