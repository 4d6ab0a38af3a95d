"""What a language model is shown of the matches: fewer and shorter cards than the paper's 150 (section 3.3), without
loss of the ones it would pick.

Which cards: those whose words say what a keyword says, and those near the whole prompt. On published picks the sum of
both keeps as many of them in 100 places as similarity alone in 120 (README, Decisions). How short: a card says each
thing once, and its description only where that adds to its name and tags.
"""

from collections.abc import Sequence

from stylus.evidence import word_evidence
from stylus.keywords import keywords
from stylus.lexical_composer import similarity_to
from stylus.records import Adapter, Category, Match
from stylus.rules import clean
from stylus.words import content_words

MOST_CANDIDATES = 104
PER_KEYWORD = 4
"""Places that a keyword has for itself, so that a long prompt can't fill the list with one of its things."""
_WORDS, _SIMILARITY = 0.2, 0.5

MOST_TAGS = 5
MOST_TRIGGERS = 2
MOST_SAID = 160
"""Characters of a description: authors say first what an adapter is."""


def short_list(prompt: str, matches: Sequence[Match]) -> list[Adapter]:
    """At most 104 candidates, in a fixed order: by turns the four best of each keyword, then the best of the prompt.

    Adapters that are flagged or hidden are left out; near-duplicates were folded by the retriever."""
    usable = [match for match in matches if match.adapter.quality is None and not match.adapter.hidden]
    asked = keywords(prompt)
    evidence = {keyword: [_strength(keyword, match.adapter) for match in usable] for keyword in asked}
    best = [max((column[n] for column in evidence.values()), default=0.0) for n in range(len(usable))]

    def of_keyword(keyword: str) -> list[int]:
        column = evidence[keyword]
        scores = [_SIMILARITY * column[n] + similarity_to(keyword, match) for n, match in enumerate(usable)]
        return sorted(range(len(usable)), key=lambda n: -scores[n])[:PER_KEYWORD]

    ranked = [of_keyword(keyword) for keyword in asked]
    turns = [row[place] for place in range(PER_KEYWORD) for row in ranked if place < len(row)]
    rest = sorted(range(len(usable)), key=lambda n: -(usable[n].prompt_score + _WORDS * best[n]))
    return [usable[n].adapter for n in list(dict.fromkeys((*turns, *rest)))[:MOST_CANDIDATES]]


def _strength(keyword: str, adapter: Adapter) -> float:
    evidence = word_evidence(keyword, adapter)
    return evidence.strength if evidence else 0.0


def render(prompt: str, candidates: Sequence[Adapter]) -> str:
    """What the model reads after the instructions. Text of cards is cut, on one line, and can't close its field."""
    lines = [f"{number} {card(adapter)}" for number, adapter in enumerate(candidates, start=1)]
    shown = prompt.replace("</prompt>", "")
    return "\n".join(("<candidates>", *lines, "</candidates>", f"<prompt>{shown}</prompt>"))


def card(adapter: Adapter) -> str:
    """A card in one line of at most about 500 characters: name, category (a concept if none), then what tags, trigger
    words and the start of the description add to that."""
    name = _field(adapter.name, 60)
    said = {name.casefold()}
    tags = _new([_field(tag, 30) for tag in adapter.tags], said)[:MOST_TAGS]
    triggers = _new([_field(word, 30) for word in adapter.trigger_words], said)[:MOST_TRIGGERS]
    fields = {"": ", ".join(tags), "trigger: ": ", ".join(triggers), "says: ": _says(adapter)}
    category = [] if adapter.category is Category.CONCEPT else [adapter.category.value]
    return " | ".join((name, *category, *(label + text for label, text in fields.items() if text)))


def _new(entries: Sequence[str], said: set[str]) -> list[str]:
    """The entries that were not said yet; they are from now on."""
    fresh = [entry for entry in dict.fromkeys(entries) if entry and entry.casefold() not in said]
    said.update(entry.casefold() for entry in fresh)
    return fresh


def _says(adapter: Adapter) -> str:
    """The start of the description; empty where it adds no more than two words, or a fifth of its own, to the rest."""
    shown = _field(adapter.description, MOST_SAID)
    words = set(content_words(shown))
    others = set(content_words(" ".join((adapter.name, *adapter.tags, *adapter.trigger_words))))
    return shown if len(words - others) > max(2, len(words) / 5) else ""


def _field(text: str, most: int) -> str:
    return clean(text, most).translate(str.maketrans("<>|", "‹›/"))
