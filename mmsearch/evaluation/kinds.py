"""The kinds of things that people ask of their photographs, and what captions say of them: ``everyday.toml``, read.

    kinds = everyday_kinds()
    said = read_captions(["A dog runs.", "Two puppies!"], kinds)
    agreeing(kinds.present[0], said)             # 2: both captions say "animal"

What no caption says may be in the picture all the same: trees stand in many that are not described by them. So kinds
that are common are never taken for absent, and those that are asked as absent are rare, and named when they occur.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("everyday.toml")
_LONGEST = 4
"""Words of a word that has several."""
_ENDINGS = ("ing", "ed", "es", "s")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing, scene, action or colour: how it is asked for, and what captions say where it is shown."""

    name: str
    ask: tuple[str, ...]
    words: frozenset[str]


@dataclass(frozen=True)
class Kinds:
    """The kinds of ``everyday.toml``: those that are ``present`` in many photographs, and those ``absent`` from most.

    Attributes:
        phrases: taken as one word.
        empty: stems of words that say nothing of what a picture shows.
        senses: for the stem of a word that a kind begins with, the stems of all words that say it.
    """

    present: tuple[Kind, ...]
    absent: tuple[Kind, ...]
    phrases: tuple[str, ...]
    empty: frozenset[str]
    senses: Mapping[str, frozenset[str]]

    @cached_property
    def _phrase(self) -> re.Pattern[str]:
        longest_first = sorted(self.phrases, key=lambda phrase: (-len(phrase), phrase))
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")

    def words(self, text: str) -> list[str]:
        """The words of a text in lower case, phrases joined: ``"A hot dog!"`` gives ``["a", "hot_dog"]``."""
        plain = " ".join(re.findall(r"[^\W_]+", text.lower()))
        if self.phrases:
            plain = self._phrase.sub(lambda found: found[0].replace(" ", "_"), plain)
        return plain.split()


@dataclass(frozen=True, slots=True)
class Said:
    """What the captions of one picture say: words and runs of words of each caption, and the stems of them all."""

    runs: tuple[frozenset[str], ...]
    stems: frozenset[str]


def everyday_kinds() -> Kinds:
    """The kinds that come with the package."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return read_kinds(tomllib.loads(_FILE.read_text(encoding="utf-8")))


def read_kinds(values: Mapping[str, Any]) -> Kinds:
    """Kinds from what ``everyday.toml`` holds, or another file of its form."""
    bare = Kinds((), (), tuple(values.get("phrases", ())), frozenset(map(stem, values.get("empty", ()))), {})
    senses: dict[str, frozenset[str]] = {}
    sides: dict[str, tuple[Kind, ...]] = {}
    for side in ("present", "absent"):
        kinds = []
        for name, kind in values.get(side, {}).items():
            words = [" ".join(bare.words(word)) for word in kind["words"]]
            kinds.append(Kind(name, tuple(kind["ask"]), frozenset(words)))
            head = stem(words[0])
            senses[head] = senses.get(head, frozenset()) | {stem(word) for word in words}
        sides[side] = tuple(kinds)
    return Kinds(sides["present"], sides["absent"], bare.phrases, bare.empty, senses)


def read_captions(captions: Iterable[str], kinds: Kinds) -> Said:
    """What the captions of a picture say."""
    words = [kinds.words(caption) for caption in captions]
    return Said(tuple(map(_runs, words)), frozenset(stem(word) for some in words for word in some))


def agreeing(kind: Kind, said: Said) -> int:
    """How many captions of a picture say that it shows ``kind``."""
    return sum(not kind.words.isdisjoint(runs) for runs in said.runs)


def matches(kind: Kind, said: Said, agree: int) -> bool:
    """Whether ``agree`` captions of a picture say that it shows ``kind``, or all where it has fewer."""
    return agreeing(kind, said) >= min(agree, len(said.runs))


def fits(caption: str, said: Said, kinds: Kinds) -> bool:
    """Whether the captions of a picture, taken together, say all that ``caption`` does; it need not be one of them.

    Each of its words that says something must stand in one of them in some form, or another word that says it: "an
    animal on the shore" fits where "a dog" and "near the shore" stand. A caption that says nothing fits nothing.
    """
    stems = {stem(word) for word in kinds.words(caption)} - kinds.empty
    unsaid = [one for one in stems if said.stems.isdisjoint({one} | kinds.senses.get(one, frozenset()))]
    return bool(stems) and not unsaid


def stem(word: str) -> str:
    """What the forms of an English word have in common, roughly: ``runs``, ``running`` and ``run`` give ``run``."""
    for ending in _ENDINGS:
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    word = re.sub(r"y$", "i", word.removesuffix("e"))
    return re.sub(r"([^aeiou])\1$", r"\1", word)


def _runs(words: Sequence[str]) -> frozenset[str]:
    """All runs of at most ``_LONGEST`` words."""
    lengths = range(1, _LONGEST + 1)
    return frozenset(" ".join(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))
