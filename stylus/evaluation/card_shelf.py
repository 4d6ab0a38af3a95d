"""All SQL on report cards: what adapters were measured to do, one card an adapter, beside the catalog."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from psycopg.rows import dict_row

from stylus.database import Database
from stylus.evaluation.effects import Effect, Verdict, verdicts
from stylus.search_index import as_text


@dataclass(frozen=True)
class Yardstick:
    """What a card was measured with: only cards of one yardstick can be compared."""

    checkpoint: str
    """The base model's name and the beginning of the SHA-256 of its weights."""
    features: str
    """The model that saw the pictures."""
    protocol: str
    """Digest of prompts, seeds and the version of the measures."""


@dataclass(frozen=True)
class Measured:
    """What was measured: while all of this is the same, the card stands."""

    adapter: str
    yardstick: Yardstick
    sha256: str
    """Of the file."""
    bytes: int
    modified: int
    """Of the file, in nanoseconds since 1970: it is read again only if this or its size changes."""
    weight: float
    words: str
    """Digest of the words of the card that were used."""


@dataclass(frozen=True)
class ReportCard:
    """A measured adapter."""

    measured: Measured
    effect: Effect
    said: Float32[np.ndarray, " d"] | None
    """Where the words of its card point to, of length 1; None: it has none."""


_COLUMNS = (
    *("adapter", "checkpoint", "features", "protocol", "sha256", "bytes", "modified", "weight", "words"),
    *("direction", "strength", "consistency", "strangeness", "broken", "kept", "said"),
)
_VECTORS = ("direction", "said")
_KEEP = """
insert into adapter_effects ({columns})
select {values} where exists (select from adapters where id = %(adapter)s)
on conflict (adapter) do update set {changes}, measured_at = now()
""".format(
    columns=", ".join(_COLUMNS),
    values=", ".join(f"%({name})s" + "::halfvec" * (name in _VECTORS) for name in _COLUMNS),
    changes=", ".join(f"{name} = excluded.{name}" for name in _COLUMNS),
)
_READ = f"""
select {", ".join(f"e.{name}" for name in _COLUMNS)} from adapter_effects e join adapters a on a.id = adapter
where adapter = any(%(ids)s) or %(ids)s is null and not hidden and not missing order by adapter
"""  # noqa: S608 - names of columns, above

_FLAG = """
update adapters set quality = flag, updated_at = now()
from unnest(%(ids)s::text[], %(flags)s::text[]) as judged (adapter, flag)
where id = adapter and quality is distinct from flag and (quality is null or starts_with(quality, %(ours)s))
"""
_OURS = "report card: "
"""How the quality flags begin that are set here: those of a vision model and of the file check stay as they are."""


class Shelf:
    """The report cards of a database. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, card: ReportCard) -> None:
        """In place of the adapter's card before. Nothing happens if the adapter was deleted in the meantime."""
        said = None if card.said is None else as_text(card.said)
        row = vars(card.measured) | vars(card.measured.yardstick) | vars(card.effect)
        row |= {"direction": as_text(card.effect.direction), "said": said}
        with self._database.connection() as connection:
            connection.execute(_KEEP, {name: row[name] for name in _COLUMNS})

    def all(self) -> list[ReportCard]:
        """Those of adapters that are neither hidden nor missing, in the order of ids."""
        return self._read(None)

    def get(self, ids: Sequence[str]) -> dict[str, ReportCard]:
        """Those among `ids` that were measured."""
        return {card.measured.adapter: card for card in self._read(list(ids))}

    def flag(self, verdicts: Mapping[str, Verdict]) -> None:
        """Flags the adapters in trouble, so that they are neither found nor composed with, and takes the flags of the
        others back."""
        flags = [None if verdict.trouble is None else _OURS + verdict.trouble for verdict in verdicts.values()]
        with self._database.connection() as connection:
            connection.execute(_FLAG, {"ids": list(verdicts), "flags": flags, "ours": _OURS})

    def unflag(self) -> None:
        """Takes all flags back that `flag` has set."""
        query = "update adapters set quality = null, updated_at = now() where starts_with(quality, %s)"
        with self._database.connection() as connection:
            connection.execute(query, [_OURS])

    def _read(self, ids: list[str] | None) -> list[ReportCard]:
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return [_card(row) for row in cursor.execute(_READ, {"ids": ids})]


def _card(row: dict[str, Any]) -> ReportCard:
    yardstick = Yardstick(row["checkpoint"], row["features"], row["protocol"])
    measured = {name: row[name] for name in ("adapter", "sha256", "bytes", "modified", "weight", "words")}
    numbers = {name: row[name] for name in ("strength", "consistency", "strangeness", "broken", "kept")}
    return ReportCard(
        Measured(yardstick=yardstick, **measured),
        Effect(direction=_vector(row["direction"]), **numbers),
        None if row["said"] is None else _vector(row["said"]),
    )


def _vector(text: str) -> Float32[np.ndarray, " d"]:
    return np.array(text.strip("[]").split(","), np.float32)


def judge(cards: Sequence[ReportCard]) -> dict[str, Verdict]:
    """Each adapter beside all that were measured with the same yardstick: adapter id -> verdict."""
    found: dict[str, Verdict] = {}
    for yardstick in {card.measured.yardstick for card in cards}:
        alike = [card for card in cards if card.measured.yardstick == yardstick]
        judged = verdicts([card.effect for card in alike], [card.said for card in alike])
        found |= {card.measured.adapter: verdict for card, verdict in zip(alike, judged, strict=True)}
    return found
