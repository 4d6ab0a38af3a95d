"""All SQL on people's votes. A vote is on what was seen: pictures that are drawn anew are voted on anew."""

import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from stylus.database import Database
from stylus.records import Record

Choice = Literal["left", "tie", "right", "skip"]


class Vote(Record):
    """What one person said of one pair, and what stood where."""

    voter: str
    ballot: str
    prompt: str
    left: str
    """The arm whose picture stood there."""
    right: str
    choice: Choice
    at: datetime | None = None
    """None: not kept yet."""

    @property
    def winner(self) -> str | None:
        """The arm; None for a tie and for a skip."""
        return {"left": self.left, "right": self.right}.get(self.choice)


class Votes:
    """Safe to share between threads. Names of voters are the same in upper and lower case."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def seed(self, evaluation: str) -> int:
        """Of the order of its pairs and of what stands left: drawn once, so that nobody can know it and a restart shows
        the same."""
        with self._database.connection() as connection:
            connection.execute(
                "insert into polls (evaluation, seed) values (%s, %s) on conflict do nothing",
                [evaluation, secrets.randbits(62)],
            )
            row = connection.execute("select seed from polls where evaluation = %s", [evaluation]).fetchone()
            if row is None:
                raise AssertionError("a row that is there was not found")
            return int(row[0])

    def add(self, vote: Vote) -> None:
        """Keeps a vote. A second one of the voter on this pair changes nothing: a phone may send it twice."""
        with self._database.connection() as connection:
            connection.execute(
                "insert into votes (ballot, voter, prompt, left_arm, right_arm, choice) "
                "values (%s, %s, %s, %s, %s, %s) on conflict do nothing",
                [vote.ballot, vote.voter, vote.prompt, vote.left, vote.right, vote.choice],
            )

    def undo(self, voter: str, ballots: Collection[str]) -> bool:
        """Takes back the voter's last vote on one of these pairs; False if there is none."""
        query = (
            "delete from votes where id = "
            "(select max(id) from votes where lower(voter) = lower(%s) and ballot = any(%s))"
        )
        with self._database.connection() as connection:
            return connection.execute(query, [voter, list(ballots)]).rowcount > 0

    def on(self, ballots: Collection[str], voter: str | None = None) -> list[Vote]:
        """Those on these pairs, of one voter or of all, in the order in which they were given."""
        query = (
            "select voter, ballot, prompt, left_arm, right_arm, choice, voted_at from votes "
            "where ballot = any(%(ballots)s) and (%(voter)s::text is null or lower(voter) = lower(%(voter)s)) "
            "order by id"
        )
        with self._database.connection() as connection:
            return [_vote(*row) for row in connection.execute(query, {"ballots": list(ballots), "voter": voter})]


def _vote(voter: str, ballot: str, prompt: str, left: str, right: str, choice: Any, at: datetime) -> Vote:
    return Vote(voter=voter, ballot=ballot, prompt=prompt, left=left, right=right, choice=choice, at=at)
