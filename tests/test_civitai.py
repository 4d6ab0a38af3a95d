"""Civitai over real HTTP on loopback: its shapes, its faults, and going on after a stop."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from stylus.errors import InvalidInput, NotFound, SourceUnavailable
from stylus.records import BaseModelFamily, Card, Category, Kind, Rating
from stylus.sources.civitai import Civitai
from stylus.web import Web
from tests.pretend import Fault, Pretend, sha256, weights

WHERE = "/api/v1/models"


def image(n: int, level: int = 1, **fields: Any) -> dict[str, Any]:
    shown = {"url": f"https://image.civitai.com/x/{n}.jpeg", "nsfwLevel": level, "type": "image"}
    return shown | {"hasMeta": True, "hasPositivePrompt": True} | fields


def file(number: int, server: Pretend, content: bytes, **fields: Any) -> dict[str, Any]:
    told = {"id": number, "name": f"{number}.safetensors", "type": "Model", "sizeKB": len(content) / 1024}
    return told | {
        "metadata": {"format": "SafeTensor"},
        "hashes": {"AutoV2": "ABC", "SHA256": sha256(content).upper()},
        "downloadUrl": f"{server.url}/api/download/models/{number}",
        "primary": True,
    } | fields  # fmt: skip


def add_model(server: Pretend, number: int, versions: int = 1, **fields: Any) -> dict[str, Any]:
    """A model as GET /models/{id} gives it, its versions as /model-versions/{id} does."""
    listed = []
    for n in range(versions):
        id, content = number * 10 + n, weights(number * 10 + n)
        server.files[f"/files/{id}.safetensors"] = content
        version = {
            "id": id,
            "name": f"v{versions - n}.0",
            "baseModel": "SD 1.5",
            "description": "<p>sharper</p>",
            "trainedWords": ["inkwash"],
            "nsfwLevel": 1,
            "availability": "Public",
            "files": [file(id, server, content)],
            "images": [image(id)],
        }
        listed.append(version)
        prompt: dict[str, Any] = {"meta": {"prompt": "a boat <lora:ink:0.7>", "negativePrompt": "blurry"}}
        about = {"modelId": number, "model": {"name": f"Ink {number}", "type": "LORA", "nsfw": False}}
        server.versions[id] = {**version, **about, "images": [image(id, **prompt)]}
    model = {
        "id": number,
        "name": f"Ink {number}",
        "type": "LORA",
        "nsfw": False,
        "nsfwLevel": 31,
        "description": "<p>Washes of <b>ink</b></p>",
        "tags": ["style", "ink"],
        "creator": {"username": "someone"},
        "allowCommercialUse": ["Image", "Sell"],
        "allowNoCredit": False,
        "modelVersions": listed,
    } | fields  # fmt: skip
    server.models.append(model)
    return model


@pytest.fixture
def server() -> Iterator[Pretend]:
    with Pretend() as server:
        yield server


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def civitai(server: Pretend, slept: list[float], tmp_path: Path) -> Iterator[Civitai]:
    with Web("Civitai", server.url, token=SecretStr("k3y"), sleep=slept.append) as web:
        yield Civitai(web, tmp_path / "places")


def read(civitai: Civitai, what: str, **options: Any) -> tuple[list[Card], dict[str, str]]:
    problems: dict[str, str] = {}
    pages = civitai.pages(what, on_problem=lambda where, why: problems.update({where: why}), **options)
    return [card for page in pages for card in page], problems


def test_a_model_gives_a_card_for_each_version_with_all_that_is_known(server: Pretend, civitai: Civitai) -> None:
    add_model(server, 7, versions=2)
    (new, old), problems = read(civitai, "7")
    assert not problems
    assert new == Card.model_validate(
        {
            "id": "civitai:7@70",
            "name": "Ink 7 v2.0",
            "description": "Washes of ink\n\nsharper",
            "tags": ("style", "ink"),
            "trigger_words": ("inkwash",),
            "base_model": "sd15",
            "category": "style",
            "examples": [{"image": "https://image.civitai.com/x/70.jpeg", "prompt": "a boat <lora:ink:0.7>"}],
            "author": "someone",
            "licence": "commercial use: Image, Sell; credit required",
            "url": "https://civitai.com/models/7?modelVersionId=70",
            "sha256": sha256(weights(70)),
            "bytes": len(weights(70)),
            "download": f"{server.url}/api/download/models/70",
            "group": "civitai:7",
        }
    )
    assert (old.id, old.group) == ("civitai:7@71", "civitai:7")
    assert all(asked.headers["authorization"] == "Bearer k3y" for asked in server.asked)
    assert not any("k3y" in str(asked.query) for asked in server.asked)


@pytest.mark.parametrize(
    ("what", "ids"),
    [
        ("civitai:7", ["civitai:7@70", "civitai:7@71"]),
        ("urn:air:sd1:lora:civitai:7@71", ["civitai:7@71"]),
        ("https://civitai.com/models/7/ink-wash", ["civitai:7@70", "civitai:7@71"]),
        ("https://civitai.com/models/7/ink?modelVersionId=71", ["civitai:7@71"]),
        ("https://civitai.com/api/download/models/70?type=Model", ["civitai:7@70"]),
    ],
)
def test_models_are_named_in_the_ways_that_people_copy_them(
    server: Pretend, civitai: Civitai, what: str, ids: list[str]
) -> None:
    add_model(server, 7, versions=2)
    assert [card.id for card in read(civitai, what)[0]] == ids


def test_a_search_goes_through_all_pages_with_its_filters(server: Pretend, civitai: Civitai, tmp_path: Path) -> None:
    for number in range(1, 6):
        add_model(server, number)
    cards, _ = read(civitai, "ink wash", family=BaseModelFamily.SD15, mature=True)
    assert [card.group for card in cards] == [f"civitai:{n}" for n in range(1, 6)]
    searches = [asked.query for asked in server.asked if asked.path == WHERE]
    assert [query.get("cursor") for query in searches] == [None, ["2"], ["4"]]
    assert searches[0]["types"] == ["LORA", "LoCon", "DoRA"]
    assert (searches[0]["query"], searches[0]["nsfw"]) == (["ink wash"], ["true"])
    assert searches[0]["baseModels"][0] == "SD 1.5"
    assert not list((tmp_path / "places").glob("*"))
    assert len(read(civitai, "ink", most=2)[0]) == 2


def test_429_and_500_are_waited_out(server: Pretend, civitai: Civitai, slept: list[float]) -> None:
    add_model(server, 1)
    server.faults = {WHERE: [Fault(429, {"retry-after": "11"}), Fault(500), Fault(cut=10)]}
    assert len(read(civitai, "ink")[0]) == 1
    assert slept[0] == 11.0
    assert len(slept) == 3


def test_a_stopped_search_goes_on_at_the_page_that_was_not_finished(
    server: Pretend, civitai: Civitai, slept: list[float]
) -> None:
    for number in range(1, 7):
        add_model(server, number)
    pages = civitai.pages("ink", on_problem=lambda *_: None)
    first, second = next(pages), next(pages)
    del pages  # killed while the second page was worked on: it comes again
    cards, _ = read(civitai, "ink")
    assert [card.group for card in (*first, *cards)] == [f"civitai:{n}" for n in range(1, 7)]
    assert cards[: len(second)] == second
    assert read(civitai, "ink")[0][0].group == "civitai:1"


def test_a_cursor_that_is_no_longer_known_starts_from_the_front(server: Pretend, civitai: Civitai) -> None:
    for number in range(1, 4):
        add_model(server, number)
    pages = civitai.pages("ink", on_problem=lambda *_: None)
    list(zip(range(2), pages, strict=False))
    del pages
    server.faults = {WHERE: [Fault(400, body=b'{"error": "Invalid cursor"}')]}
    assert len(read(civitai, "ink")[0]) == 3
    server.faults = {WHERE: [Fault(400, body=b'{"error": "Bad query"}')]}
    with pytest.raises(InvalidInput, match="Bad query"):
        read(civitai, "ink")


def test_ratings_and_pictures(server: Pretend, civitai: Civitai) -> None:
    add_model(server, 1, nsfw=True)
    mixed = add_model(server, 2)
    mixed["modelVersions"][0] |= {"nsfwLevel": 13}
    only = add_model(server, 3, poi=True, tags=["someone"])
    only["modelVersions"][0] |= {"nsfwLevel": 12}
    for version in server.versions.values():
        video, ftp = image(5, type="video"), image(6, url="ftp://x/y.png")
        version["images"] = [image(1, 1), image(2, 2), image(3, 4), image(4, 16), video, ftp]
    cards, _ = read(civitai, "ink")
    assert [card.rating for card in cards] == [Rating.MATURE, Rating.GENERAL, Rating.MATURE]
    assert [len(card.examples) for card in cards] == [4, 2, 4]
    assert cards[2].category is Category.CELEBRITY


def test_what_can_not_be_used_is_said_and_the_rest_goes_on(server: Pretend, civitai: Civitai) -> None:
    add_model(server, 1, type="Checkpoint")
    add_model(server, 2)["modelVersions"][0]["files"] = [{"name": "old.pt"}, {"name": None}, "nonsense"]
    odd = add_model(server, 3, name=None, tags="no list", creator="someone", description=["no", "text"], type="LoCon")
    odd["modelVersions"] = [*odd["modelVersions"], "nonsense", {"id": "x"}]
    paid = add_model(server, 4)
    paid["modelVersions"][0]["availability"] = "EarlyAccess"
    foreign = add_model(server, 5)
    two = [file(50, server, b"a" * 1000), file(51, server, b"b" * 1024, primary=False)]
    two[0] |= {"downloadUrl": "https://example.org/x", "hashes": {"SHA256": "zz"}}
    foreign["modelVersions"][0]["files"] = [two[1], two[0]]
    server.models.append("nonsense")  # type: ignore[arg-type]
    cards, problems = read(civitai, "ink")
    assert set(problems) == {"civitai:1", "civitai:2@20", "civitai:None"}
    assert [card.id for card in cards] == ["civitai:3@30", "civitai:4@40", "civitai:5@50", "civitai:5@50.51"]
    assert (cards[0].kind, cards[0].name, cards[0].tags) == (Kind.LOCON, "v1.0", ("no list",))
    assert [card.download for card in cards[1:3]] == [None, None]
    assert (cards[2].sha256, cards[2].bytes, cards[3].bytes) == (None, 1000, 1024)
    assert str(cards[3].download).startswith(server.url)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(404), NotFound, "404"),
        (Fault(401, body=b'{"error": "who are you"}'), SourceUnavailable, "who are you"),
        (Fault(body=b"<html>maintenance"), SourceUnavailable, "JSON"),
        (Fault(body=b"[" * 100_000), SourceUnavailable, "JSON"),
        (Fault(503), SourceUnavailable, "503"),
    ],
)
def test_errors_are_sentences(
    server: Pretend, civitai: Civitai, fault: Fault, error: type[Exception], words: str
) -> None:
    server.faults = {f"{WHERE}/7": [fault] * 9}
    with pytest.raises(error, match=words):
        read(civitai, "7")


def test_nonsense_for_a_target_is_refused(civitai: Civitai) -> None:
    for what in ("", "  ", "https://civitai.com/images/1"):
        with pytest.raises(InvalidInput):
            read(civitai, what)


def test_by_hash_finds_the_cards_of_local_files(server: Pretend, civitai: Civitai, tmp_path: Path) -> None:
    add_model(server, 7, versions=2)
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "renamed.safetensors").write_bytes(weights(71))
    (folder / "own.safetensors").write_bytes(weights(1234))
    (folder / "broken.safetensors").write_bytes(b"<html>")
    problems: dict[str, str] = {}
    pages = civitai.by_hash(folder, on_problem=lambda where, why: problems.update({Path(where).name: why}))
    [card] = [card for page in pages for card in page]
    plain = read(civitai, "https://civitai.com/models/7?modelVersionId=71")[0][0]
    assert card == plain.model_copy(update={"file": str(folder / "renamed.safetensors"), "rank": 4})
    assert "stylus ingest folder" in problems["own.safetensors"]
    assert "web page" in problems["broken.safetensors"]


def test_an_unfinished_place_that_is_damaged_counts_as_none(server: Pretend, civitai: Civitai, tmp_path: Path) -> None:
    for number in range(1, 4):
        add_model(server, number)
    pages = civitai.pages("ink", on_problem=lambda *_: None)
    list(zip(range(2), pages, strict=False))
    del pages
    [place] = (tmp_path / "places").glob("*.json")
    assert json.loads(place.read_text()) == {"cursor": "2", "models": 2}
    place.write_text('{"cursor"')
    assert len(read(civitai, "ink")[0]) == 3
