"""A prompt's keywords without a language model: what the paper's composer calls tasks (section 3.3), by rules.

The paper asks a language model to split the prompt into keywords that cover it and do not overlap. Captions are plain
enough for less: function words and punctuation bound noun phrases; an -ing form after a noun is an action of its own;
a participle or a verb of position only binds; words of praise ("masterpiece", "8k") draw nothing.
One pass over the words, so that a prompt of 100,000 characters takes as long as its length says.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from stylus.words import FUNCTION_WORDS, content_words, fold, purpose_words

MOST_WORDS = 4
"""Words a keyword: longer ones match no card (DESIGN.md, Settled points). The parts of a hyphenated word count."""

MOST_KEYWORDS = 32
"""A text encoder reads 77 tokens; what comes after some 30 phrases draws nothing, and each costs an embedding."""

LONGEST_WORD = 40
"""Characters. Longer runs without a space are hashes or noise."""

_MARKS = "\u0300-\u036f\u0610-\u061a\u064b-\u0652\u0900-\u0dff\u0e31-\u0e4e"  # combining ones, which are no \w
_PIECE = rf"(?:[^\W_]|[{_MARKS}])+"
TOKEN = re.compile(
    r"(?P<noise><[^<>\n]{0,200}>|\b(?:high|highest|best|ultra|sharp|good|great|extremely|super|hyper)[ -]"
    r"(?:quality|detailed|detail|details|resolution|res|definition|focus|realistic)\b)"
    rf"|{_PIECE}(?:['’_-]{_PIECE})*",
    re.IGNORECASE,
)
"""A word, with hyphens and apostrophes inside; or noise: praise of two words, the `<lora:name:0.8>` of other tools."""

_LISTS = {
    "praise": """
        masterpiece quality uhd hdr 4k 8k 16k detailed intricate resolution hires highres trending artstation
        award-winning beautiful nice lovely pretty amazing stunning awesome gorgeous professional please""",
    "picture": "picture image photo photograph pic shot view scene depiction",
    "empty": """
        front part middle side top bottom end kind type group row style styles lot bunch pair couple set number
        variety""",
    "adverbs": "together away apart alone forward backward again already same different own various instead devoid",
    "binding": """
        sit sits sat stand stands stood lie lies lay lays laid hold holds held wear wears wore hang hangs hung show
        shows shown depict depicts contain contains feature features featuring depicting showing containing having
        using keep keeps kept seen seem seems appear appears become becomes go goes went come comes came take taken
        takes took put puts give gives gave ride rides rode walk walks look looks looking wait waits eat eats ate
        drawn worn driven built""",
    "ly": "family butterfly dragonfly jelly belly lily bully curly woolly brolly holly dolly rally gully assembly",
    "things in -ing": """
        building string spring swing sling thing ceiling wedding evening morning lightning earring duckling painting
        drawing clothing bedding frosting icing topping pudding dumpling stocking railing awning sibling living dining
        parking engraving etching carving viking nothing something anything everything crossing opening housing
        lighting shading colouring coloring""",
    "things in -ed": "hundred speed breed steed bleed moped sacred naked wicked",
}
_WORDS = {name: frozenset(text.split()) for name, text in _LISTS.items()}
# Verbs that bind a noun to its place are a short list: without a tagger "plays" could as well be a noun.
_BOUNDS = FUNCTION_WORDS | _WORDS["praise"] | _WORDS["adverbs"] | _WORDS["binding"]
_AUXILIARIES = frozenset({"is", "are", "was", "were", "be", "been", "being"})
_NEGATIONS = frozenset({"no", "not", "without", "never", "cannot", "neither", "nor", "except", "lacking"})
_PAIRS = frozenset({("instead", "of"), ("rather", "than"), ("devoid", "of")})
_AFFIRMING = frozenset({"only", "just", "merely"})  # "not only a cat"
_LIST = re.compile(r"(?:,\s*(?!(?:an?|the)\b)(?:[\w'’-]+\s+){0,2}[\w'’-]+){0,9},?\s+n?or\b", re.IGNORECASE)
"""How what is denied goes on: "no text, watermark or logo". Without articles: "no hat, a cat or a dog" is open."""
_ARTICLES = frozenset({"a", "an", "the", "any"})


@dataclass(frozen=True)
class _Token:
    start: int
    end: int
    text: str  # casefolded
    noise: bool

    @property
    def denies(self) -> bool:
        """Whether what comes next shall not be in the picture."""
        return self.text in _NEGATIONS or self.text.endswith(("n't", "n’t"))

    @property
    def pieces(self) -> int:
        return 1 + sum(self.text.count(joint) for joint in "'’_-")

    @property
    def bounds(self) -> bool:
        """Whether it stands between keywords and belongs to none."""
        return (
            self.noise
            or self.denies
            or len(self.text) > LONGEST_WORD
            or self.pieces > MOST_WORDS
            or self.text.isdigit()
            or self.text in _BOUNDS
            or fold(self.text) in FUNCTION_WORDS
            or (self.text.endswith("ly") and len(self.text) > 4 and self.text not in _WORDS["ly"])
        )

    @property
    def is_action(self) -> bool:
        return len(self.text) > 5 and self.text.endswith("ing") and self.text not in _WORDS["things in -ing"]

    @property
    def is_participle(self) -> bool:
        return (
            len(self.text) > 4
            and self.text.endswith("ed")
            and self.text not in _WORDS["things in -ed"]
            and self.pieces == 1
        )


def keywords(prompt: str) -> list[str]:
    """The prompt's keywords in its order: disjoint substrings of it, of at most four words, at most 32 of them.

    Deterministic. A phrase that repeats the words of an earlier one is left out. An empty prompt, or one of function
    words and praise alone, has none.
    """
    found: dict[tuple[str, ...], str] = {}
    for phrase in _phrases(prompt):
        for start, end in _chunks(phrase):
            text = prompt[start:end]
            found.setdefault(content_words(text) or (fold(text),), text)
            if len(found) == MOST_KEYWORDS:
                return list(found.values())
    return list(found.values())


@lru_cache(maxsize=4096)
def core(keyword: str) -> str:
    """The keyword without colours and sizes before and "style" or "background" after: what to search for.

    "black kitty" lies nearer to everything black than "kitty" does. A keyword of such words alone stays as it is.
    """
    inside = [match for match in TOKEN.finditer(keyword) if purpose_words(match[0])]
    return keyword[inside[0].start() : inside[-1].end()] if inside else keyword


@lru_cache(maxsize=4096)
def parts(keyword: str) -> tuple[str, str] | None:
    """Modifier and head of a keyword that is about two things or more: ("gilded", "crown"). None for one thing."""
    inside = [match for match in TOKEN.finditer(keyword) if purpose_words(match[0])]
    if len(inside) < 2:
        return None
    return keyword[inside[0].start() : inside[-2].end()], inside[-1][0]


def search_terms(prompt: str) -> list[str]:
    """What the retriever should search for besides the whole prompt: the core of each keyword, then the parts of those
    about several things. At most 32, each once."""
    asked = keywords(prompt)
    cut = [part for keyword in asked for part in parts(keyword) or ()]
    return list(dict.fromkeys([*map(core, asked), *cut]))[:MOST_KEYWORDS]


def _phrases(prompt: str) -> Iterator[list[_Token]]:
    """Noun phrases and actions: runs of words that nothing but spaces separates, actions and participles cut out."""
    run: list[_Token] = []
    end = 0
    after_be = False  # an -ing or -ed form after "is" is a verb
    denied = False  # the next phrase, those after "or", and a verb's object
    article = False
    before = ""
    for match in TOKEN.finditer(prompt):
        token = _Token(match.start(), match.end(), match[0].casefold(), match["noise"] is not None)
        gap, end = prompt[end : match.start()], match.end()
        broken = "\n" in gap or bool(gap.strip())
        if broken or token.bounds:
            if not denied:
                yield from _cut(run, after_be, token.text == "of" and not broken)
            denied = denied and (
                (not broken and (not run or token.text in _ARTICLES | {"or", "nor"}))
                or (gap.startswith(",") and _LIST.match(prompt, match.start() - len(gap)) is not None)
            )
            run, after_be = [], False
        if not token.bounds:
            run.append(token)
        else:
            after_be = token.text in _AUXILIARIES
            denies = token.denies or (before, token.text) in _PAIRS
            denied = denied or (denies and not article)  # but for "a no parking sign"
            denied = denied and token.text not in _AFFIRMING
        article, before = token.text in _ARTICLES, token.text
    if not denied:
        yield from _cut(run, after_be, False)


def _cut(run: list[_Token], after_be: bool, before_of: bool) -> Iterator[list[_Token]]:
    """Cuts "man riding horse" into three and "bus parked" to "bus"; leaves "stuffed bear" and "dining table"."""
    part: list[_Token] = []
    parts = [part]
    for index, token in enumerate(run):
        verb_place = bool(part) or (index == 0 and after_be)
        # "Big running shoes": only a quality stands before, and a noun follows.
        if verb_place and token.is_action and not (part and index < len(run) - 1 and all(map(_is_quality, part))):
            part = []
            parts += [[token], part]
        elif verb_place and token.is_participle and (not part or index == len(run) - 1):
            continue
        else:
            part.append(token)
    nothing = _WORDS["empty"] | _WORDS["picture"] if before_of else _WORDS["empty"]
    yield from (part for part in parts if any(token.text not in nothing for token in part))


def _is_quality(token: _Token) -> bool:
    return token.is_participle or not purpose_words(token.text)


def _chunks(phrase: list[_Token]) -> Iterator[tuple[int, int]]:
    """Spans of at most four words, cut from the end: in English the head of a noun phrase comes last."""
    spans: list[tuple[int, int]] = []
    last = len(phrase)
    while last:
        first, size = last, 0
        while first and size + phrase[first - 1].pieces <= MOST_WORDS:
            first -= 1
            size += phrase[first].pieces
        spans.append((phrase[first].start, phrase[last - 1].end))
        last = first
    yield from reversed(spans)
