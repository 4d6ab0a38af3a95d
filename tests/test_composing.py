"""What a person, a seed and a policy change in a composition, through the one object that all callers use."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from stylus.cli import app
from stylus.errors import InvalidInput, NotFound
from stylus.ingest import ingest_pocket
from stylus.records import Composition, Pick, Policy
from stylus.settings import Settings
from stylus.stylus import Stylus

PROMPT = "a red star and a heart on a checkerboard background"


@pytest.fixture
def stylus(settings: Settings) -> Iterator[Stylus]:
    with Stylus(settings) as opened:
        ingest_pocket(opened.catalog, opened.embedder)
        yield opened


def weights(composition: Composition) -> dict[str, float]:
    return {choice.adapter_id: choice.weight for choice in composition.choices}


def test_decisions_of_a_person_are_kept_to_and_told(stylus: Stylus) -> None:
    before = weights(stylus.compose(PROMPT))
    assert {"pocket:star", "pocket:heart"} <= set(before)

    stylus.preferences.set_weight("pocket:star", 0.45)
    composition = stylus.compose(PROMPT)
    assert weights(composition) == {**before, "pocket:star": 0.45}
    assert any("pocket:star has your weight 0.45" in note for note in composition.notes)
    picks = [Pick(id="pocket:star", weight=0.3), Pick(id="pocket:heart")]
    assert weights(stylus.compose(PROMPT, picks=picks))["pocket:star"] == 0.3
    assert weights(stylus.compose(PROMPT, picks=[Pick(id="pocket:star")])) == {"pocket:star": 0.45}

    stylus.preferences.flag_pair("pocket:star", "pocket:heart", "looks odd")
    composition = stylus.compose(PROMPT)
    assert len({"pocket:star", "pocket:heart"} & set(weights(composition))) == 1
    assert any("looks odd" in note for note in composition.notes)
    with pytest.raises(InvalidInput, match="looks odd"):
        stylus.compose(PROMPT, picks=picks)


def test_normalising_evens_out_and_says_so(stylus: Stylus) -> None:
    plain = stylus.compose(PROMPT)
    even = stylus.compose(PROMPT, normalise=True)
    norms = stylus.norms.measure(stylus.catalog.require(list(weights(plain))))
    median = stylus.norms.median(plain.base_model)
    assert median is not None
    for id, weight in weights(plain).items():
        assert (weights(even)[id] - weight) * (median - norms[id]) >= 0  # loud ones down, quiet ones up
        assert any(note.startswith(f"{id} is normalised") for note in even.notes)


def test_each_policy_chooses_from_the_same_catalog(stylus: Stylus) -> None:
    chosen = {
        policy: stylus.compose(PROMPT, policy=policy, seed=5)
        for policy in (Policy.RETRIEVER, Policy.RANDOM, Policy.NONE)
    }
    assert {policy: len(made.choices) for policy, made in chosen.items()} == {
        Policy.RETRIEVER: 3,
        Policy.RANDOM: 3,
        Policy.NONE: 0,
    }
    assert all(choice.adapter_id.startswith("pocket:") for made in chosen.values() for choice in made.choices)
    again = stylus.compose(PROMPT, policy=Policy.RANDOM, seed=5)
    other = stylus.compose(PROMPT, policy=Policy.RANDOM, seed=6)
    assert again.tasks == chosen[Policy.RANDOM].tasks != other.tasks
    assert again.composer == "random"
    assert chosen[Policy.NONE].uncovered
    with pytest.raises(InvalidInput, match="STYLUS_RERANKER"):
        stylus.compose(PROMPT, policy=Policy.RERANKER)


def test_the_commands_on_decisions(stylus: Stylus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stylus.settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", stylus.settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(stylus.settings.data))

    def ran(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        return json.loads(result.stdout)

    assert ran("weight", "pocket:star", "0.5") == {"pocket:star": 0.5}
    pair = {"adapters": ["pocket:heart", "pocket:star"], "reason": "looks odd"}
    assert ran("pair", "pocket:star", "pocket:heart", "--reason", "looks odd") == [pair]
    composed = ran("compose", PROMPT, "--temperature", "0.2", "--seed", "3")
    assert "pocket:star has your weight 0.5" in str(composed["notes"])
    assert "looks odd" in str(composed["notes"])
    assert ran("weight", "pocket:star", "--forget") == {}
    assert ran("pair", "pocket:star", "pocket:heart", "--forget") == []
    with pytest.raises(NotFound, match="pocket:nothing"):
        ran("weight", "pocket:nothing", "0.5")
    with pytest.raises(InvalidInput, match="both"):
        ran("pair", "pocket:star")
