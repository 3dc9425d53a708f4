"""Both answers worked out again from a prompt's text alone, by other routes than the generators.

Each function gets the question (the prompt's lines between name and answer) and returns what Alice
and what Bob should say.
"""

import re
from datetime import date, datetime
from fractions import Fraction

from offkey.tasks import words


def comparison(question):
    a, b = re.findall(r"\d+", question)
    return Fraction(a) - Fraction(b) > 0, a[-1] > b[-1]


def parity(question):
    (number,) = re.findall(r"\d+", question)
    return number[-1] in "02468", number[0] in "02468"


def dates(question):
    found = re.findall(r"(\d+) ([A-Z][a-z]+)", question)
    first, second = (datetime.strptime(f"{d} {m} 2023", "%d %B %Y").date() for d, m in found)
    assert isinstance(first, date)
    return first.timetuple().tm_yday < second.timetuple().tm_yday, first.day < second.day


def membership(question):
    listed, word = re.fullmatch(r"List: (.*)\. Is (\w+) in it\?", question).groups()
    return bool(re.search(rf"\b{word}\b", listed)), listed.startswith(word + ",")


def alphabetical(question):
    a, b = re.fullmatch(r"Is (\w+) before (\w+) in the alphabet\?", question).groups()
    return sorted([a, b])[0] == a, len(a) < len(b)


def agreement(question):
    sentence = question.removesuffix(" Is the verb right?")
    match = re.fullmatch(r"The (\w+) .*the (\w+) (is|are) \w+\.", sentence)
    subject, nearest, verb = match.groups()
    return subject.endswith("s") == (verb == "are"), nearest.endswith("s") == (verb == "are")


def past(question):
    sentence = question.removesuffix(" Is it in the past?")
    tokens = sentence.removesuffix(".").split()
    verb = tokens[2]
    in_present = verb.endswith("s") and verb not in ("was",)
    return not in_present, any(token.endswith("ed") for token in tokens)


def plural(question):
    noun = re.match(r"They saw the (\w+) ", question)[1]
    irregular = re.search(r"(men|women|children|people|oxen|mice|geese|teeth|feet)$", noun)
    regular = noun.endswith("s") and noun[:-1] in words.SINGULARS_OTHER
    return bool(irregular or regular), noun[-1] == "s"


def animal(question):
    thing = question.split(" near ")[0].split()[-1]
    animals = set(words.BIG_ANIMALS + words.SMALL_ANIMALS)
    return thing in animals, thing in set(words.BIG_ANIMALS + words.BIG_THINGS)


def inference(question):
    premise, hypothesis = re.fullmatch(r"(.*)\. So: (.*)\. Right\?", question).groups()
    opposite = dict(entry.split(":") for entry in words.ANTONYMS)
    opposite |= {b: a for a, b in opposite.items()}
    subject, said = premise.split(" is ")
    other, claim = hypothesis.split(" is ")
    assert subject == other
    meant = opposite[claim.removeprefix("not ")] if claim.startswith("not ") else claim
    return meant == said, " not " not in hypothesis


def owner(question):
    passage, who, thing = re.fullmatch(r"(.*)\. Does (\w+) have the (\w+)\?", question).groups()
    has = re.search(rf"{who} has a {thing}\b", passage)
    return has is not None, thing in re.split(r"\W+", passage)


def arithmetic(question):
    body, modulus = question.removeprefix("Is ").removesuffix("?"), None
    if " mod " in body:
        body = body.replace(" mod 113", "")
        modulus = 113
    left, right = body.split(" = ")
    a, sign, b = left.split(" ")
    result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
    if modulus:
        result = result % modulus
    digits = str(abs(result))
    higher = f"{int(digits[0]) + 1}{digits[1:]}"
    raised = f"-{higher}" if result < 0 else higher
    return right == str(result), right == raised


BY_TEXT = {
    "comparison": comparison,
    "parity": parity,
    "dates": dates,
    "membership": membership,
    "alphabetical": alphabetical,
    "agreement": agreement,
    "past": past,
    "plural": plural,
    "animal": animal,
    "inference": inference,
    "owner": owner,
    **{
        name + suffix: arithmetic
        for name in ("addition", "subtraction", "multiplication", "modularaddition", "squaring")
        for suffix in ("", "-small")
    },
}
