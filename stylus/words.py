"""Words as the composer compares them: folded for case, width, plural and spelling, so that "Corgis" equals "corgi".

Pure and deterministic; no dictionary, only rules and the irregular words that captions use.
"""

import re
import unicodedata
from functools import lru_cache

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
"""A run of letters and digits with inner apostrophes. Hyphens split: "t-shirt" is compared as "t" and "shirt"."""

_FUNCTION_WORDS = """
    a an the this that these those some any each every no both either neither all half such another other others
    one two three four five six seven eight nine ten eleven twelve dozen several few many much more most less least
    lots
    i me my mine myself you your yours he him his she her hers it its itself we us our ours they them their theirs
    who whom whose which what when where why how there here
    and or but nor so yet if then than because while as though although whether
    of in on at by for from to into onto upon with without within over under above below between among amongst behind
    beside besides near next about around across along against through during before after up down off out inside
    outside toward towards per via like unlike not very too also just only even still quite rather really almost
    am is are was were be been being do does did doing done have has had having will would shall should can could may
    might must get gets got getting let lets make makes made making
    etc vs eg ie
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that carry no picture of their own: they bound keywords and never count as evidence."""

_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "oxen": "ox", "buses": "bus", "lenses": "lens", "gases": "gas",
    "wolves": "wolf", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "calves": "calf", "elves": "elf",
    "loaves": "loaf", "thieves": "thief", "wives": "wife", "scarves": "scarf", "hooves": "hoof", "halves": "half",
    "lens": "lens", "gas": "gas", "series": "series", "species": "species", "jeans": "jeans",
}  # fmt: skip


@lru_cache(maxsize=65536)
def fold(word: str) -> str:
    """The form under which a single word is compared: case, accents' composition, possessive, plural, -our and grey.

    Not for display: "cookie" and "cookies" both fold to "cooky".
    """
    word = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    word = word.removesuffix("'s").rstrip("'").replace("colour", "color").replace("grey", "gray")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")):
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zzes")) else word[:-1]
    if len(word) > 3 and word.endswith(("ie", "oe")):
        word = word[:-2] + "y" if word.endswith("ie") else word[:-1]
    return word


def words(text: str) -> list[str]:
    """All words of the text, folded, in order, repeats included."""
    return [fold(word) for word in WORD.findall(text)]


def content_words(text: str) -> tuple[str, ...]:
    """Folded words that are not function words, in order, each once."""
    kept = (fold(word) for word in WORD.findall(text) if word.casefold() not in FUNCTION_WORDS)
    return tuple(dict.fromkeys(kept))


_GENERAL_WORDS = """
    style styled stylized background backdrop wallpaper scene picture image photo photograph photography art artwork
    concept theme lora locon lycoris adapter model checkpoint version ver sd sd15 sdxl xl flux pony illustrious
    trained training draw draws drawn looking shape icon symbol sign emblem design pattern texture
"""
_ATTRIBUTES = """
    red orange yellow green blue purple violet pink white black gray brown teal cyan turquoise beige tan
    big small large little huge tiny giant tall short long old new young high low wide thin thick
    dark light bright pale colorful nice good great beautiful pretty cute simple clean single plain whole
    different same various own full empty
"""
_VERSION = re.compile(r"v?\d+(\.\d+)*[a-z]?")
_GENERAL = frozenset(content_words(_GENERAL_WORDS))
_UNSPECIFIC = _GENERAL | frozenset(content_words(_ATTRIBUTES))


@lru_cache(maxsize=65536)
def specific_words(text: str) -> tuple[str, ...]:
    """Content words without "style", "background", "lora", version numbers and the like: no card is about those."""
    return tuple(word for word in content_words(text) if word not in _GENERAL and not _VERSION.fullmatch(word))


@lru_cache(maxsize=65536)
def purpose_words(text: str) -> tuple[str, ...]:
    """Content words that an adapter can be about: specific ones that are no colour or size either."""
    return tuple(word for word in specific_words(text) if word not in _UNSPECIFIC)
