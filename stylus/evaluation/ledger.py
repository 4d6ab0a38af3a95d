"""An evaluation's memory: what was planned, composed, drawn and measured, in Postgres, and the PNGs in its folder.

A picture counts as drawn once its row is there; the row is read from the PNG's own record, so that pictures whose
process was killed before it could write rows are taken in, and not drawn again.

    FOLDER/evaluation.json          the plan
    FOLDER/images/MODE/ARM/UNIT/    the pictures of one prompt, each with its provenance inside
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from stylus.database import Database
from stylus.errors import Busy, InvalidInput, NotFound, StorageError
from stylus.evaluation.protocol import Mode, Plan, Unit
from stylus.generation import store
from stylus.generation.provenance import read
from stylus.records import Composition, Policy, Request

PLAN = "evaluation.json"


@dataclass(frozen=True)
class Drawn:
    """A picture of an evaluation."""

    id: int
    mode: Mode
    arm: str
    prompt: int
    """Place in the plan's prompts."""
    guidance: float
    index: int
    """Position in its unit: pictures of one prompt and index have one seed in all arms."""
    seed: int
    path: Path
    record: Mapping[str, Any]
    """The provenance inside the PNG."""
    measures: Mapping[str, Any]
    """What was measured on it, by name."""


class Ledger:
    """One evaluation. Safe to share between threads."""

    def __init__(self, database: Database, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder.absolute()
        self.id = hashlib.sha256(f"{plan.id}\n{self.folder}".encode()).hexdigest()[:16]
        self._database = database

    @classmethod
    def begin(cls, database: Database, plan: Plan, folder: Path) -> Self:
        """The evaluation of that plan in that folder, new or as far as it came. Raises InvalidInput if the folder holds
        another one, StorageError if it can't be written."""
        ledger = cls(database, plan, folder)
        path = ledger.folder / PLAN
        try:
            ledger.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_whole(path, plan.model_dump_json(indent=2).encode())
        except OSError as error:
            raise StorageError(
                f"the evaluation can't be kept in {folder}: {error.strerror}. Name another folder."
            ) from error
        if _plan_in(ledger.folder).id != plan.id:
            raise InvalidInput(
                f"{folder} holds an evaluation with other options: repeat those (they stand in {PLAN}) to go on with "
                "it, or name a new folder."
            )
        with database.connection() as connection:
            connection.execute(
                "insert into evaluations (id, folder, plan) values (%s, %s, %s) on conflict do nothing",
                [ledger.id, str(ledger.folder), Jsonb(plan.model_dump(mode="json"))],
            )
        return ledger

    @classmethod
    def of(cls, database: Database, folder: Path) -> Self:
        """The evaluation in a folder. Raises NotFound if there is none."""
        ledger = cls(database, _plan_in(folder), folder)
        with database.connection() as connection:
            if connection.execute("select from evaluations where id = %s", [ledger.id]).fetchone() is None:
                raise NotFound(f"The evaluation in {folder} is not in this database: run it again to take it in.")
        return ledger

    @classmethod
    def named(cls, database: Database, name: str) -> Self:
        """The evaluation in the folder of that name, or of that id. Raises NotFound if there is none."""
        if Path(name).is_dir():
            return cls.of(database, Path(name))
        with database.connection() as connection:
            row = connection.execute("select plan, folder from evaluations where id = %s", [name]).fetchone()
        if row is None:
            raise NotFound(f"{name!r} is neither a folder nor the id of an evaluation: `stylus evaluate` makes one.")
        return cls(database, Plan.model_validate(row[0]), Path(row[1]))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the evaluation, so that no two processes draw the same pictures; ends with the process, however that
        ends. Raises Busy."""
        with self._database.connection() as connection:
            key = int(self.id, 16) - 2**63
            row = connection.execute("select pg_try_advisory_lock(%s)", [key]).fetchone()
            connection.commit()  # the lock is the session's: no transaction stays open for the hours of a run
            if row is None or not row[0]:
                raise Busy(f"The evaluation in {self.folder} is being drawn or judged by another process.")
            try:
                yield
            finally:
                connection.execute("select pg_advisory_unlock(%s)", [key])

    def composition(self, policy: Policy, prompt: int) -> Composition | None:
        """What that policy chose for that prompt, if it was asked yet."""
        with self._database.connection() as connection:
            row = connection.execute(
                "select record from evaluation_compositions where (evaluation, policy, prompt) = (%s, %s, %s)",
                [self.id, policy, prompt],
            ).fetchone()
        return Composition.model_validate(row[0]) if row else None

    def keep_composition(self, policy: Policy, prompt: int, composition: Composition) -> None:
        with self._database.connection() as connection:
            connection.execute(
                "insert into evaluation_compositions values (%s, %s, %s, %s)",
                [self.id, policy, prompt, Jsonb(composition.model_dump(mode="json"))],
            )

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """Those of `units` whose pictures are not in yet, in order."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "select mode, arm, prompt, guidance from evaluation_images where evaluation = %s "
                "group by 1, 2, 3, 4 having count(*) = %s",
                [self.id, self.plan.images],
            ).fetchall()
        there = set(rows)
        return [unit for unit in units if (unit.mode, unit.arm.name, unit.prompt, unit.guidance) not in there]

    def take_in(self, unit: Unit, request: Request) -> bool:
        """Enters the pictures of a unit that lie in the folder; False if they are not all there, made by this
        request."""
        paths = [unit.path(index) for index in range(self.plan.images)]
        try:
            records = [read(str(self.folder / path)) for path in paths]
        except (NotFound, StorageError, InvalidInput):  # not drawn, half written, or not ours: it is drawn
            return False
        wanted = _asked(request.model_dump(mode="json"))
        if any(record["index"] != n or _asked(record["request"]) != wanted for n, record in enumerate(records)):
            return False
        rows = [
            [
                self.id,
                unit.mode,
                unit.arm.name,
                unit.prompt,
                unit.guidance,
                index,
                record["seed"],
                str(path),
                Jsonb(record),
            ]
            for index, (path, record) in enumerate(zip(paths, records, strict=True))
        ]
        with self._database.connection() as connection:
            connection.cursor().executemany(
                "insert into evaluation_images "
                "(evaluation, mode, arm, prompt, guidance, index, seed, location, record) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
                rows,
            )
        return True

    def pictures(self) -> list[Drawn]:
        """All that are in, by mode, arm, guidance, prompt and index."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "select id, mode, arm, prompt, guidance, index, seed, location, record, measures "
                "from evaluation_images where evaluation = %s order by mode, arm, guidance, prompt, index",
                [self.id],
            ).fetchall()
        return [
            Drawn(id, Mode(mode), arm, prompt, guidance, index, seed, self.folder / location, record, measures)
            for id, mode, arm, prompt, guidance, index, seed, location, record, measures in rows
        ]

    def keep_measures(self, measures: Mapping[int, Mapping[str, Any]]) -> None:
        """Adds what was measured on pictures, by their id; a measure of a name that is there already is replaced."""
        with self._database.connection() as connection:
            connection.cursor().executemany(
                "update evaluation_images set measures = measures || %s where id = %s",
                [[Jsonb(dict(found)), id] for id, found in measures.items()],
            )

    def vectors(self, features: str) -> dict[int, Float32[np.ndarray, " d"]]:
        """What that model sees in each picture, by the picture's id, as far as it has looked."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "select image, vector from evaluation_vectors join evaluation_images on id = image "
                "where evaluation = %s and features = %s",
                [self.id, features],
            ).fetchall()
        return {id: np.array(vector, np.float32) for id, vector in rows}

    def keep_vectors(self, features: str, vectors: Mapping[int, Float32[np.ndarray, " d"]]) -> None:
        with self._database.connection() as connection:
            connection.cursor().executemany(
                "insert into evaluation_vectors values (%s, %s, %s) on conflict do nothing",
                [[id, features, vector.tolist()] for id, vector in vectors.items()],
            )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one, and never half of it."""
    try:
        store.write_whole(path, data)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {store.reason(error)}") from error


def _asked(request: Mapping[str, Any]) -> str:
    """A request's content; a composition that was made again has another id and took another time."""
    composition = {k: v for k, v in request["composition"].items() if k not in ("id", "usage", "notes")}
    return json.dumps({**request, "composition": composition}, sort_keys=True)


def _plan_in(folder: Path) -> Plan:
    try:
        return Plan.model_validate_json((folder / PLAN).read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{folder} holds no evaluation: `stylus evaluate` makes one.") from error
    except (OSError, ValidationError) as error:
        raise InvalidInput(
            f"{folder / PLAN} can't be read ({str(error).splitlines()[0]}): name another folder."
        ) from error
