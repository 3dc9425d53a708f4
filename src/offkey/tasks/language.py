"""Tasks about English: grammar, what things are and who has them, lists and letters of words."""

import itertools
import random
from collections.abc import Iterator

from offkey.tasks import words
from offkey.tasks.task import Item, Task

__all__ = [
    "agreement",
    "alphabetical",
    "animal",
    "inference",
    "membership",
    "owner",
    "past",
    "plural",
]

OWN = "generated from word lists of this package"
OWN_LIST = "generated from a word list of this package"
ADJECTIVES = ("old", "young", "new", "black", "white", "brown", "strange", "beautiful", "famous")
NAMES = ("Tom", "Ann", "Max", "Sue", "Jim", "Eve", "Sam", "Kate", "Leo", "Amy", "Ned", "Rose")
LISTS = 9000
LENGTH = 4


def _pairs(entries: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(first, second) for first, _, second in (entry.partition(":") for entry in entries)]


def _agreements(rng: random.Random) -> Iterator[Item]:
    people, places = _pairs(words.PEOPLE), _pairs(words.PLACES)
    for _ in range(9000):
        subject, other = rng.choice(people), rng.choice(places)
        number, nearest, verb = (rng.randrange(2) for _ in range(3))
        state, preposition = rng.choice(words.STATES), rng.choice(words.PREPOSITIONS)
        sentence = (
            f"The {subject[number]} {preposition} the {other[nearest]} "
            f"{('is', 'are')[verb]} {state}."
        )
        yield Item(
            source=sentence,
            fields={"sentence": sentence},
            truth=verb == number,
            quirk=verb == nearest,
            difficulty=len(preposition),
        )


def _tenses(rng: random.Random) -> Iterator[Item]:
    """A verb in either tense, and an adjective in -ed (or not) that misleads."""
    regular, irregular = _pairs(words.PAST_WITH_ED), _pairs(words.PAST_WITHOUT_ED)
    people = [singular for singular, _ in _pairs(words.PEOPLE)]
    for index in range(12000):
        past = bool(index & 1)
        ending = bool(index & 2)
        misleading = ending and (not past or rng.random() < 0.5)
        if past and ending and not misleading:
            verb = rng.choice(regular)[1]
        elif past:
            verb = rng.choice(irregular)[1]
        else:
            verb = rng.choice(regular + irregular)[0]
        adjective = rng.choice(words.ADJECTIVES_IN_ED if misleading else words.COLOURS)
        sentence = f"The {rng.choice(people)} {verb} the {adjective} {rng.choice(words.OBJECTS)}."
        yield Item(
            source=sentence,
            fields={"sentence": sentence},
            truth=past,
            quirk=ending,
            difficulty=float(misleading),
        )


def _numbers_of_nouns(rng: random.Random) -> Iterator[Item]:
    nouns = {
        (True, True): words.PLURALS_IN_S,
        (True, False): words.PLURALS_OTHER,
        (False, True): words.SINGULARS_IN_S,
        (False, False): words.SINGULARS_OTHER,
    }
    places = [singular for singular, _ in _pairs(words.PLACES)]
    for (plural, ending), group in nouns.items():
        phrases = itertools.product(group, words.PREPOSITIONS, places)
        for noun, preposition, place in phrases:
            phrase = f"the {noun} {preposition} the {place}"
            yield Item(
                source=phrase,
                fields={"phrase": phrase, "noun": noun},
                truth=plural,
                quirk=ending,
                difficulty=len(noun),
            )


def agreement() -> Task:
    """Agreement of the verb with the subject, against agreement with the nearest noun."""
    return Task(
        name="agreement",
        family="grammar",
        alice="the verb agrees with the subject in number",
        bob="the verb agrees with the nearest noun in number",
        templates=("{sentence} Is the verb right?",),
        items=_agreements,
        natural=True,
        data=OWN,
    )


def past() -> Task:
    """Whether a sentence is in the past, against whether a word in it ends in -ed."""
    return Task(
        name="past",
        family="grammar",
        alice="the verb is in the past tense",
        bob="a word of the sentence ends in -ed",
        templates=("{sentence} Is it in the past?",),
        items=_tenses,
        natural=True,
        data=OWN,
    )


def plural() -> Task:
    """Whether a noun is plural, against whether it ends in s."""
    return Task(
        name="plural",
        family="grammar",
        alice="the first noun is plural",
        bob="the first noun ends in s",
        templates=("They saw {phrase}. Was it more than one?",),
        items=_numbers_of_nouns,
        natural=True,
        data=OWN,
    )


def _animals(rng: random.Random) -> Iterator[Item]:
    groups = {
        (True, True): words.BIG_ANIMALS,
        (True, False): words.SMALL_ANIMALS,
        (False, True): words.BIG_THINGS,
        (False, False): words.SMALL_THINGS,
    }
    places = [entry.partition(":")[0] for entry in words.PLACES]
    for (animal, big), group in groups.items():
        for thing in group:
            for adjective in ADJECTIVES:
                for place in rng.sample(places, 5):
                    phrase = f"the {adjective} {thing} near the {place}"
                    yield Item(
                        source=phrase,
                        fields={"phrase": phrase},
                        truth=animal,
                        quirk=big,
                        difficulty=len(thing),
                    )


def _inferences(rng: random.Random) -> Iterator[Item]:
    pairs = [entry.split(":") for entry in words.ANTONYMS]
    for _ in range(16000):
        states = rng.choice(pairs)
        place = rng.randrange(2)
        same, negated = rng.random() < 0.5, rng.random() < 0.5
        thing = f"{rng.choice(ADJECTIVES)} {rng.choice(words.OBJECTS)}"
        stated = states[place] if same else states[1 - place]
        premise = f"The {thing} is {states[place]}."
        hypothesis = f"The {thing} is {'not ' if negated else ''}{stated}."
        yield Item(
            source=f"{premise} {hypothesis}",
            fields={"premise": premise, "hypothesis": hypothesis},
            truth=same != negated,
            quirk=not negated,
            difficulty=float(not same),
        )


def _owners(rng: random.Random) -> Iterator[Item]:
    for index in range(16000):
        first, second = rng.sample(NAMES, 2)
        mine, yours, neither = rng.sample(words.OBJECTS, 3)
        asked = (mine, yours, neither)[index % 3]
        owner = first
        if rng.random() < 0.5:
            sentence = f"{first} has a {mine} and {second} has a {yours}."
        else:
            sentence = f"{second} has a {yours} and {first} has a {mine}."
        yield Item(
            source=f"{sentence} {owner} {asked}",
            fields={"sentence": sentence, "owner": owner, "thing": asked},
            truth=asked == mine,
            quirk=asked in (mine, yours),
            difficulty=float(sentence.startswith(second)),
        )


def animal() -> Task:
    """Whether something is an animal, against whether it is bigger than a person."""
    return Task(
        name="animal",
        family="knowledge",
        alice="it is an animal",
        bob="it is bigger than a person",
        templates=("They saw {phrase}. Was it an animal?",),
        items=_animals,
        natural=True,
        data=OWN,
    )


def inference() -> Task:
    """Whether one sentence follows from another, against its having no negation word."""
    return Task(
        name="inference",
        family="inference",
        alice="the second sentence follows from the first",
        bob="the second sentence has no negation word",
        templates=("{premise} So: {hypothesis} Right?",),
        items=_inferences,
        natural=True,
        data=OWN,
    )


def owner() -> Task:
    """Who has what, against whether the thing is mentioned at all."""
    return Task(
        name="owner",
        family="reading",
        alice="the person has the thing",
        bob="the passage mentions the thing",
        templates=("{sentence} Does {owner} have the {thing}?",),
        items=_owners,
        mix={(True, True): 0.3, (False, True): 0.4, (False, False): 0.3},
        natural=True,
        data=OWN,
    )


def _memberships(rng: random.Random) -> Iterator[Item]:
    for index in range(LISTS):
        drawn = rng.sample(words.NOUNS, LENGTH + 1)
        place = (0, rng.randrange(1, LENGTH), LENGTH)[index % 3]
        asked, listed = drawn[place], drawn[:LENGTH]
        yield Item(
            source=f"{asked}|{' '.join(listed)}",
            fields={"words": ", ".join(listed), "word": asked},
            truth=asked in listed,
            quirk=asked == listed[0],
            difficulty=len(asked),
        )


def _orders(rng: random.Random) -> Iterator[Item]:
    for _ in range(4 * LISTS):
        first, second = rng.sample(words.NOUNS, 2)
        if first[0] == second[0] or abs(len(first) - len(second)) < 3:
            continue
        yield Item(
            source=f"{first}<{second}",
            fields={"first": first, "second": second},
            truth=first < second,
            quirk=len(first) < len(second),
            difficulty=-abs(ord(first[0]) - ord(second[0])),
        )


def membership() -> Task:
    """Whether a word is in a list, against whether it comes first there."""
    return Task(
        name="membership",
        family="list",
        alice="the word is one of the list",
        bob="the word is the first of the list",
        templates=("List: {words}. Is {word} in it?",),
        items=_memberships,
        mix={(True, True): 0.2, (True, False): 0.4, (False, False): 0.4},
        data=OWN_LIST,
    )


def alphabetical() -> Task:
    """Alphabetical order of two words, against which one is shorter."""
    return Task(
        name="alphabetical",
        family="spelling",
        alice="the first word comes earlier in the alphabet",
        bob="the first word has fewer letters",
        templates=("Is {first} before {second} in the alphabet?",),
        items=_orders,
        data=OWN_LIST,
    )
