"""What a card's words say about a keyword: the exact half of the lexical composer (paper, section 3.3, the composer's
rules on scope: an adapter is neither broader nor narrower than its task)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from stylus.records import Adapter
from stylus.words import content_words

_LISTS = {
    "general": """
        style styled stylized background backdrop wallpaper scene picture image photo photograph photography art artwork
        concept theme lora locon lycoris adapter model checkpoint version ver sd sd15 sdxl xl flux pony illustrious
        trained training draw draws drawn looking""",
    "attributes": """
        red orange yellow green blue purple violet pink white black gray brown teal cyan turquoise beige tan
        big small large little huge tiny giant tall short long old new young high low wide thin thick
        dark light bright pale colorful nice good great beautiful pretty cute simple clean single plain whole
        different same various own full empty""",
    "people": """
        girl boy man woman person character anime human male female lady guy hair eye face body portrait solo child
        1girl 1boy adult player rider worker""",
}
_WORDS = {name: frozenset(content_words(text)) for name, text in _LISTS.items()}

_VERSION = re.compile(r"v?\d+(\.\d+)*[a-z]?")
_SEPARATORS = re.compile(r"[,;|()\[\]{}/:]+|\s[-–—]\s")
_NAME_ENDS = re.compile(r"[,;|()\[\]{}/:]+|\s[-–—]\s|\s(?:of|from|in|by|the)\s", re.IGNORECASE)
_DOUBTFUL = re.compile(
    r"\b(wip|work in progress|first (try|attempt)|experiment(al)?|under-?trained|over-?(trained|fitted|fit|baked)"
    r"|broken|deprecated|failed|bad quality|low quality|do not use|don't use|outdated|unfinished"
    r"|early (test|version))\b",
    re.IGNORECASE,
)


MOST_AGREEING = 8
"""Phrases of a card that count together; more is repetition for the search engine."""


@dataclass(frozen=True)
class Evidence:
    """How strongly (0 to 1) a card's words speak for a keyword, why, and which of the keyword's words they cover."""

    strength: float
    reason: str
    covers: frozenset[str]
    agreement: float = 0.0
    """How many of the card's phrases speak of the same thing, as log(1 + count): [0, 2.2]."""


@lru_cache(maxsize=65536)
def purpose_words(text: str) -> tuple[str, ...]:
    """Content words that an adapter can be about: not colours, sizes, "style", "background" or version numbers."""
    dropped = _WORDS["general"] | _WORDS["attributes"]
    return tuple(word for word in content_words(text) if word not in dropped and not _VERSION.fullmatch(word))


@lru_cache(maxsize=65536)
def _specific(text: str) -> tuple[str, ...]:
    """As purpose_words, with colours and sizes kept: they tell a "red panda" from a panda."""
    return tuple(word for word in content_words(text) if word not in _WORDS["general"] and not _VERSION.fullmatch(word))


def word_evidence(keyword: str, adapter: Adapter) -> Evidence | None:
    """The strongest of what name, trigger words and tags say; None if no word is shared."""
    asked, strong = _specific(keyword), purpose_words(keyword)
    if not strong:
        return None
    phrases = list(_phrases(adapter))
    about = sum(1 for _, phrase in phrases if strong[-1] in _specific(phrase))
    best: Evidence | None = None
    for field, phrase in phrases:
        strength, relation = _compare(asked, strong, _specific(phrase))
        if field == "tag":
            # One tag of many says less about the main purpose than most of them do.
            strength *= 0.75 + 0.2 * about / len(phrases)
        if strength > (best.strength if best else 0.0):
            covers = frozenset(asked).intersection(_specific(phrase))
            best = Evidence(strength, f"{field} {_short(phrase)!r} {relation}", covers)
    return replace(best, agreement=math.log1p(min(about, MOST_AGREEING))) if best else None


def _phrases(adapter: Adapter) -> Iterator[tuple[str, str]]:
    for part in _SEPARATORS.split(adapter.name):
        yield "name", part.strip()
    for word in adapter.trigger_words:
        for part in word.split(","):
            yield "trigger word", part.strip()
    for tag in adapter.tags:
        yield "tag", tag.strip()


def _compare(asked: tuple[str, ...], strong: tuple[str, ...], phrase: tuple[str, ...]) -> tuple[float, str]:
    """Strength in [0, 1] and the relation. `strong` is `asked` without colours and sizes; its last word is the head."""
    wanted, offered, head = set(asked), set(phrase), strong[-1]
    if not offered & set(strong):
        return 0.0, ""
    if offered == wanted:
        return 1.0, "equals the keyword"
    if offered == set(strong):
        return 0.97, "equals the keyword but for its attributes"
    if offered < wanted:
        return (0.8, "is what the keyword is about") if head in offered else (0.5, "is part of the keyword")
    if set(strong) <= offered:
        # Narrower: "double decker bus" for "bus". "Bus stop" for "bus" is another thing: its head differs.
        share = len(strong) / len(offered)
        return (
            (0.45 + 0.3 * share, "narrows the keyword") if phrase[-1] == head else (0.3 * share, "names another thing")
        )
    share = len(offered & wanted) / len(offered | wanted)
    return (0.6 * share if head in offered else 0.3 * share), "shares words with the keyword"


def is_named(adapter: Adapter, keyword: str) -> bool:
    """Whether the keyword names this character or celebrity.

    It does with the name itself ("Ada" of "Ada of the Bridge" or of "Ada (Bridge Tales)"), whole or in part, or with
    the first trigger word: later ones list clothes and props. Words for any person ("girl") name nobody.
    """
    asked = set(purpose_words(keyword)) - _WORDS["people"]
    names = [_NAME_ENDS.split(adapter.name, maxsplit=1)[0]]
    names += [word.split(",")[0] for word in adapter.trigger_words[:1]]
    for name in names:
        words = set(purpose_words(name)) - _WORDS["people"]
        if words and asked and (words <= asked or asked <= words):
            return True
    return False


def doubts(adapter: Adapter) -> float:
    """What a card itself says against the adapter, as a penalty on its score: [0, 0.6]."""
    penalty = 0.0
    if not 0.3 <= adapter.weight <= 1.3:
        penalty += 0.15  # a slider, or one that its author had to tame
    if not adapter.description.strip() and not adapter.examples:
        penalty += 0.15  # nobody says or shows what it does
    if _DOUBTFUL.search(f"{adapter.name}\n{adapter.description[:2000]}"):
        penalty += 0.3
    return penalty


def _short(phrase: str) -> str:
    return phrase if len(phrase) <= 40 else phrase[:39] + "…"
