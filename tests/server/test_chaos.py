"""A small form of `tests.benchmarks.chaos`: the same processes, fewer jobs and kills."""

from pathlib import Path

from tests.benchmarks.chaos import chaos


def test_every_accepted_job_ends_once_whatever_is_killed(reachable: Path) -> None:
    result = chaos(reachable, jobs=6, kills=3, every=1.0, seed=3, quick=True)
    assert {key: result[key] for key in ("jobs", "done", "lost", "doubled")} == {
        "jobs": 6,
        "done": 6,
        "lost": 0,
        "doubled": 0,
    }
    assert result["kills"] >= 1
