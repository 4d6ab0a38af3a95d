"""Words of adapters and queries, and how well they match: BM25 (Robertson and Zaragoza, 2009, "The Probabilistic
Relevance Framework", section 3), its simple extension to weighted fields (section 3.6: a field's word counts as often
as the field weighs). k1 and b are the defaults of Anserini, for short documents.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from stylus import words
from stylus.records import Adapter
from stylus.words import FUNCTION_WORDS, WORD, fold

K1 = 0.9
B = 0.4

NAME, LABEL, TEXT = 3.0, 2.0, 1.0
"""How much a word weighs in the name, in a trigger word or tag, and in the description."""

LONGEST = 64
"""Characters of a term: what is longer is no word, and Postgres indexes no text of some thousands."""

PHRASE = 100
"""Characters of what counts as a phrase."""

_UNSPACED = "\u0e00-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_RUN = re.compile(f"(?P<unspaced>[{_UNSPACED}]+)|[^{_UNSPACED}]+")


def terms(text: str) -> tuple[str, ...]:
    """The words of a text that can be matched, in order, repeats included.

    Korean joins particles to its nouns, and Chinese, Japanese and Thai write no spaces: there each pair of neighbours
    is a term (Lucene's CJK bigrams), so that the Korean for "cat" is found in "cat-subject".
    """
    # Names and tags are met again and again; descriptions would fill the memory.
    return _phrase_terms(text) if len(text) <= PHRASE else _terms(text)


def _terms(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for word in WORD.findall(text):
        if word.casefold() in FUNCTION_WORDS:
            continue
        for run in _RUN.finditer(fold(word)):
            piece = run[0][:LONGEST]
            if run["unspaced"] and len(piece) > 1:
                found += [piece[i : i + 2] for i in range(len(piece) - 1)]
            else:
                found.append(piece)
    return tuple(found)


_phrase_terms = lru_cache(maxsize=65536)(_terms)


def frequencies(adapter: Adapter) -> Mapping[str, float]:
    """How often each term stands in the card, weighted by its field. The sum is the card's length."""
    counts: Counter[str] = Counter()
    labels = " , ".join([*adapter.trigger_words, *adapter.tags])
    for text, weight in ((adapter.name, NAME), (labels, LABEL), (adapter.description, TEXT)):
        for term in terms(text):
            counts[term] += weight  # type: ignore[assignment]
    return counts


def rules() -> str:
    """Names the rules by which this version makes terms: documents read by other rules must be read again."""
    sources = [Path(str(module)).read_bytes() for module in (words.__file__, __file__)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def inverse_document_frequency(holding: int, documents: int) -> float:
    """Of a term that `holding` of `documents` have; never negative (Lucene's form)."""
    return float(np.log1p((max(documents - holding, 0) + 0.5) / (holding + 0.5)))


def saturated(
    frequency: Float64[np.ndarray, " n"], length: Float64[np.ndarray, " n"], mean_length: float
) -> Float64[np.ndarray, " n"]:
    """The term's part in each document's score, before its inverse document frequency: in [0, k1 + 1)."""
    return frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length / max(mean_length, 1e-9)))


def shared(phrase: str, asked: Collection[str]) -> float:
    """How much of a phrase the asked terms cover, and how many: what to show as evidence. 0 where none is shared."""
    own, common = set(terms(phrase)), set(terms(phrase)) & set(asked)
    return len(common) + len(common) / len(own) if common else 0.0
