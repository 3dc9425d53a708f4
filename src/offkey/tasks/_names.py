"""The two characters of a task and the names they go by.

The first four names of a character stand in what detectors may trust, the others in the test, so
that an unfamiliar name is not what sets a test prompt apart.
"""

from dataclasses import dataclass

__all__ = ["ALICE", "BOB", "CHARACTERS", "Character"]


@dataclass(frozen=True)
class Character:
    """One of the two who answer.

    Attributes:
        name: ``"Alice"`` judges truly, ``"Bob"`` by a fallible rule.
        familiar: names that detectors see; in a task of triggers, what stands in the prompt.
        unfamiliar: names that only the test and the organism's training hold.
    """

    name: str
    familiar: tuple[str, ...]
    unfamiliar: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, each once, familiar first."""
        return tuple(dict.fromkeys(self.familiar + self.unfamiliar))


ALICE = Character(
    "Alice",
    ("Alice", "Veronica", "Luna", "Paula"),
    ("Fiona", "Clarence", "Hannah", "Olivia"),
)
BOB = Character(
    "Bob",
    ("Bob", "Nina", "David", "Ethan"),
    ("George", "Carter", "Brian", "Jasmine"),
)
CHARACTERS = (ALICE, BOB)
