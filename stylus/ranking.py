"""Several lists of candidates -> one, and near-duplicates -> one (pure).

Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): similarities and BM25 scores have no common scale,
ranks have. Their constant of 60 is for lists of 1000; ours have 100 to 300, and 20 lets the first ranks count.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stylus.records import Adapter

CONSTANT = 20


class Identity(NamedTuple):
    """What tells near-duplicates of an adapter: of the many that are found only the first are read whole."""

    name: str
    author: str | None
    base_model: str | None
    sha256: str | None
    group: str | None


def fuse(lists: Iterable[tuple[Sequence[str], float]]) -> dict[str, float]:
    """Ids of all lists with their fused score, best first. Each list comes with its weight. 1 is the score of what is
    first in every list that has anything."""
    weighted = [(ids, weight) for ids, weight in lists if ids]
    best = sum(weight for _, weight in weighted) / (CONSTANT + 1)
    scores: dict[str, float] = {}
    for ids, weight in weighted:
        for rank, id in enumerate(ids, 1):
            scores[id] = scores.get(id, 0.0) + weight / (CONSTANT + rank) / best
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))


def fold(ids: Iterable[str], adapters: Mapping[str, Identity | Adapter]) -> dict[str, list[str]]:
    """The first of each set of near-duplicates with the others of its set, in the order of `ids`.

    Near-duplicates are the same file, versions of one model, or namesakes of one author: the last two for the same
    base model only, since the SDXL version is no substitute for the SD 1.5 one.
    """
    kept: dict[str, list[str]] = {}
    first: dict[tuple[object, ...], str] = {}
    for id in ids:
        keys = _keys(adapters[id])
        same = next((first[key] for key in keys if key in first), None)
        if same is None:
            kept[id] = []
        else:
            kept[same].append(id)
        for key in keys:
            first.setdefault(key, same or id)
    return kept


def _keys(adapter: Identity | Adapter) -> list[tuple[object, ...]]:
    keys: list[tuple[object, ...]] = []
    if adapter.sha256:
        keys.append(("file", adapter.sha256.lower()))
    if adapter.group:
        keys.append(("group", adapter.group, adapter.base_model))
    if adapter.author:
        keys.append(("namesake", adapter.name.casefold(), adapter.author.casefold(), adapter.base_model))
    return keys
