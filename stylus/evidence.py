"""What a card's words say about a keyword: the exact half of the lexical composer (paper, section 3.3, the composer's
rules on scope: an adapter is neither broader nor narrower than its task)."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from stylus.records import Adapter, Category
from stylus.words import content_words, purpose_words, specific_words

_PEOPLE = """
    girl boy man woman person character anime human male female lady guy hair eye face body portrait solo child
    1girl 1boy adult player rider worker
"""
_PERSONS = frozenset(content_words(_PEOPLE))

_SEPARATORS = re.compile(r"[,;|()\[\]{}/:]+|\s[-–—]\s")
_NAME_ENDS = re.compile(r"[,;|()\[\]{}/:]+|\s[-–—]\s|\s(?:of|from|in|by|the)\s", re.IGNORECASE)
_DOUBTFUL = re.compile(
    r"\b(wip|work in progress|first (try|attempt)|experiment(al)?|under-?trained|over-?(trained|fitted|fit|baked)"
    r"|broken|deprecated|failed|bad quality|low quality|do not use|don't use|outdated|unfinished"
    r"|early (test|version))\b",
    re.IGNORECASE,
)
_LOUD = re.compile(
    r"\b(strong (version|effect)|(very|extra|too) strong|strongest|extreme|crank|max+x+|slider)\b", re.IGNORECASE
)

MODIFIES = "is part of the keyword"

DETAILED = 20
"""Content words from which on a card says enough; more may be advertising."""


@dataclass(frozen=True)
class Evidence:
    """How strongly (0 to 1) a card's words speak for a keyword, why, and which of the keyword's words they cover."""

    strength: float
    reason: str
    covers: frozenset[str]


def word_evidence(keyword: str, adapter: Adapter) -> Evidence | None:
    """The strongest of what name, trigger words and tags say; None if no word is shared."""
    asked, strong = specific_words(keyword), purpose_words(keyword)
    if not strong:
        return None
    phrases = _phrases(adapter)
    agreeing = sum(1 for _, phrase in phrases if strong[-1] in specific_words(phrase))
    best: Evidence | None = None
    for field, phrase in phrases:
        strength, relation = _compare(asked, strong, specific_words(phrase))
        if relation == MODIFIES and adapter.category is Category.STYLE:
            strength = 0.7  # a style is named by a modifier: "neon corgi"
        if field == "trigger word":
            # The name says what an adapter is; one word may start several things.
            strength *= 0.97
        if field == "tag":
            # One tag of many says less about the main purpose than most of them do.
            strength *= 0.75 + 0.2 * agreeing / len(phrases)
        if strength > (best.strength if best else 0.0):
            covers = frozenset(asked).intersection(specific_words(phrase))
            best = Evidence(strength, f"{field} {_short(phrase)!r} {relation}", covers)
    return best


def _phrases(adapter: Adapter) -> tuple[tuple[str, str], ...]:
    return _split(adapter.name, adapter.trigger_words, adapter.tags)


@lru_cache(maxsize=4096)
def _split(name: str, trigger_words: tuple[str, ...], tags: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return (
        *(("name", part.strip()) for part in _SEPARATORS.split(name)),
        *(("trigger word", part.strip()) for word in trigger_words for part in word.split(",")),
        *(("tag", tag.strip()) for tag in tags),
    )


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
        return (0.8, "is what the keyword is about") if head in offered else (0.5, MODIFIES)
    if set(strong) <= offered:
        # Narrower: "double decker bus" for "bus". "Bus stop" for "bus" is another thing: its head differs.
        share = len(strong) / len(offered)
        return (
            (0.45 + 0.3 * share, "narrows the keyword") if phrase[-1] == head else (0.3 * share, "names another thing")
        )
    share = len(offered & wanted) / len(offered | wanted)
    return (0.6 * share if head in offered else 0.3 * share), "shares words with the keyword"


def about(adapter: Adapter) -> frozenset[str]:
    """All purpose words of the card's name, trigger words and tags."""
    return frozenset(word for _, phrase in _phrases(adapter) for word in purpose_words(phrase))


def alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two cards, given what each is `about`, are of one thing: half of the shorter one's words are shared."""
    shared = len(one & other)
    return shared > 0 and 2 * shared >= min(len(one), len(other))


def detail(adapter: Adapter) -> float:
    """How much a card says, [0, 1]: its content words up to 20, on a log scale.

    Whoever takes care of an adapter describes it, and cards of adapters that many use grow. Not part of the paper,
    whose composer sees all cards and is told nothing about this."""
    return math.log1p(min(_said(adapter.description[:2000], adapter.tags), DETAILED)) / math.log1p(DETAILED)


@lru_cache(maxsize=4096)
def _said(description: str, tags: tuple[str, ...]) -> int:
    return len(content_words(f"{description} {' '.join(tags)}"))


def is_named(adapter: Adapter, keyword: str) -> bool:
    """Whether the keyword names this character or celebrity.

    It does with the name itself ("Ada" of "Ada of the Bridge" or of "Ada (Bridge Tales)"), whole or in part, or with
    the first trigger word: later ones list clothes and props. Words for any person ("girl") name nobody.
    """
    asked = set(purpose_words(keyword)) - _PERSONS
    names = [_NAME_ENDS.split(adapter.name, maxsplit=1)[0]]
    names += [word.split(",")[0] for word in adapter.trigger_words[:1]]
    for name in names:
        words = set(purpose_words(name)) - _PERSONS
        if words and asked and (words <= asked or asked <= words):
            return True
    return False


def doubts(adapter: Adapter) -> float:
    """What a card itself says against the adapter, as a penalty on its score: [0, 0.75]."""
    penalty = 0.0
    if not 0.3 <= adapter.weight <= 1.5:
        penalty += 0.15  # a slider, or one that its author had to tame
    if not adapter.description.strip() and not adapter.examples:
        penalty += 0.15  # nobody says or shows what it does
    text = f"{adapter.name}\n{adapter.description[:2000]}"
    if _DOUBTFUL.search(text):
        penalty += 0.3
    if _LOUD.search(text) or _shouts(adapter.description):
        penalty += 0.15  # made to overpower the picture, or to be turned both ways
    return penalty


def _shouts(text: str) -> bool:
    capitals, small = sum(map(str.isupper, text[:2000])), sum(map(str.islower, text[:2000]))
    return capitals + small > 15 and capitals > 0.6 * (capitals + small)


def _short(phrase: str) -> str:
    return phrase if len(phrase) <= 40 else phrase[:39] + "…"
