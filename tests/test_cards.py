"""Cards as JSON lines: strict line by line, and an export that comes back as it went."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.errors import InvalidInput, StorageError
from stylus.gathering import export
from stylus.ingest import IngestReport, ingest, settle
from stylus.records import Card, Category, Filters
from stylus.sources.cards import MOST_LINE, cards, write


def read(path: Path, may_fetch: bool = True) -> tuple[list[Card], dict[int, str]]:
    problems: dict[int, str] = {}
    found = cards(
        path,
        lambda where, why: problems.update({int(where.rpartition(":")[2]): why}),
        may_fetch=lambda card: may_fetch,
    )
    return list(found), problems


def lines(path: Path, *contents: Any) -> Path:
    path.write_text("".join(json.dumps(content) + "\n" for content in contents), encoding="utf-8")
    return path


def test_the_form_that_lists_have(tmp_path: Path) -> None:
    line = {
        "id": "civitai:1",
        "name": "bus",
        "base_model": "SD 1.5",
        "type": "LORA",
        "tags": ["bus"],
        "description": "d",
    }
    unknown = {"id": "made:2", "name": "x", "base_model": "SD 2.1", "type": "LoCon", "weight": 0.5}
    (first, second), problems = read(lines(tmp_path / "list.jsonl", line, unknown))
    assert not problems
    assert first == Card.model_validate(
        {"id": "civitai:1", "name": "bus", "base_model": "sd15", "tags": ("bus",), "description": "d"}
    )
    assert (second.base_model, second.kind, second.weight) == (None, "locon", 0.5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "Expecting"),
        (b"[1]", "no JSON object"),
        (b'{"id": "a:1"}', "name"),
        (b'{"id": "no id", "name": "x"}', "id"),
        (b'{"id": "a:1", "name": "x", "colour": "red"}', "colour"),
        (b'{"id": "a:1", "name": "x", "type": "Checkpoint"}', "Checkpoint"),
        (b'{"id": "a:1", "name": "x", "weight": 99}', "weight"),
        (b'{"id": "a:1", "name": "x", "bytes": 1' + b"0" * 30 + b"}", "bytes"),
        (b'{"id": "a:1", "name": "x", "rank": 5000000000}', "rank"),
        (b'{"id": "a:1", "name": "x", "group": "' + b"x" * 3000 + b'"}', "group"),
        (b'{"id": "a:1", "name": "x\\u0000"}', "U\\+0000"),
        (b'{"id": "a:1", "name": "x\\ud800"}', "U\\+D800"),
        (b'{"id": "a:1", "name": "x", "tags": ["\\u001b[31m"]}', "U\\+001B"),
        (b'{"id": "a:1", "name": "\xff"}', "utf-8"),
        (b'{"id": "a:1", "name": "x", "file": "/etc/passwd"}', "safetensors"),
        (b'{"id": "a:1", "name": "x", "file": "x.safetensors"}', "full path"),
        (
            b'{"id": "a:1", "name": "x", "file": "/%s.safetensors", "examples": [{"image": "/x.png"}]}' % (b"x" * 300),
            "too long",
        ),
        (b'{"id": "a:1", "name": "x", "examples": [{"image": "/home/me/private.png"}]}', "beside"),
        (b'{"id": "a:1", "name": "x", "examples": [{"image": "file:///home/me/private.png"}]}', "beside"),
        (b'{"id": "civitai:1", "name": "x", "download": "https://example.org/x"}', "host"),
        (b"[" * 100_000, "Left out"),
        (b'"' + b"x" * (2 * MOST_LINE + 5) + b'"', "longer"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_the_rest_goes_on(tmp_path: Path, line: bytes, words: str) -> None:
    good = b'{"id": "a:%d", "name": "x"}'
    path = tmp_path / "list.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good % 7 + b"\n\n" + line + b"\n" + good % 8)
    found, problems = read(path, may_fetch=False)
    assert [card.id for card in found] == ["a:7", "a:8"]
    assert list(problems) == [3]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(problems[3])


def test_a_picture_needs_a_weight_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(b"x")
    line = {"id": "a:1", "name": "x", "file": str(tmp_path / "x.safetensors")}
    line["examples"] = [{"image": str(tmp_path / "private.png")}]  # type: ignore[assignment]
    path = lines(tmp_path / "list.jsonl", line)
    assert "beside" in read(path)[1][1]
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert len(read(path)[0]) == 1


def test_no_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(StorageError, match="can't be written"):
        write([], tmp_path / "absent" / "x.jsonl")


def test_a_file_whose_name_is_in_capitals(tmp_path: Path) -> None:
    """Folders have such files too, and exports of them could not be read back."""
    line = {"id": "file:1", "name": "x", "file": "/loras/X.SAFETENSORS"}
    (found,), problems = read(lines(tmp_path / "x.jsonl", line))
    assert (found.file, problems) == ("/loras/X.SAFETENSORS", {})


def test_an_export_replaces_files_only(tmp_path: Path) -> None:
    """As root `stylus export /dev/null` left a list of cards in its place."""
    pipe, other, link = tmp_path / "pipe", tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="is a device"):
        write([], pipe)
    assert pipe.is_fifo()
    other.write_text("before")
    (tmp_path / "real.jsonl.new").write_text("a file of somebody's own")
    link.symlink_to(other)
    assert write([], link) == 0
    assert (link.is_symlink(), other.read_text()) == (True, "")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "real.jsonl", "real.jsonl.new", "link.jsonl"}


def test_an_export_comes_back_as_it_went(
    database: Database, second_database: Database, embedder: Embedder, tmp_path: Path
) -> None:
    catalog, other = Catalog(database), Catalog(second_database)
    weights = tmp_path / "ink.safetensors"
    plain = Card(id="file:1", name="plain", description="a < b & <5 steps>\nnext\u200d", tags=("a, b", "c"))
    full = Card.model_validate(
        {
            "id": "civitai:7@70",
            "name": "Ink \u4e2d \U0001f600",
            "trigger_words": ["inkwash"],
            "base_model": "sd15",
            "kind": "locon",
            "rating": "mature",
            "examples": [
                {"image": str(tmp_path / "ink.png"), "prompt": "p"},
                {"image": "https://image.civitai.com/1.png", "prompt": "<lora:x:1>"},
            ],
            "author": "someone",
            "licence": "CC0",
            "url": "https://civitai.com/models/7",
            "file": str(weights),
            "sha256": "ab" * 32,
            "bytes": 10,
            "rank": 4,
            "download": "https://civitai.com/api/download/models/70",
            "group": "civitai:7",
        }
    )
    ingest([plain, full], catalog, embedder)
    refined = settle(plain, hidden=True).model_copy(
        update={
            "description": "better",
            "category": Category.POSE,
            "weight": -0.3,
            "refined": True,
            "quality": "blurry",
        }
    )
    vectors = embedder.documents(["better"])
    from stylus.catalog import Entry

    catalog.add_embedded([Entry(refined, plain.content_hash(), vectors)], embedder.name)
    first, second = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert export(catalog, first) == 2

    found, problems = read(first)
    assert not problems
    assert ingest(found, other, embedder) == IngestReport(added=2)
    assert other.get(["file:1", full.id]) == catalog.get(["file:1", full.id])
    export(other, second)
    assert second.read_bytes() == first.read_bytes()
    assert ingest(found, other, embedder) == IngestReport(unchanged=2)
    # The source's own card is still known: what was refined is not lost.
    assert ingest([plain], other, embedder) == IngestReport(unchanged=1)
    assert other.get(["file:1"])["file:1"] == refined
    # A card that was refined elsewhere replaces the one that was not.
    ingest([plain.model_copy(update={"id": "file:2"})], other, embedder)
    text = first.read_text("utf-8").replace('"file:1"', '"file:2"')
    assert ingest(read_text(text, tmp_path), other, embedder).updated == 1
    assert other.get(["file:2"])["file:2"].refined


@pytest.mark.parametrize("exported", [False, True])
def test_a_file_of_another_machine_is_missing_until_it_is_here(
    database: Database, embedder: Embedder, tmp_path: Path, exported: bool
) -> None:
    catalog, weights = Catalog(database), tmp_path / "x.safetensors"
    line = {"id": "made:1", "name": "x", "file": str(weights)} | ({"refined": True} if exported else {})
    fetched = {"id": "civitai:1@1", "name": "y", "file": "/none/y.safetensors", "download": "https://civitai.com/1"}
    path = lines(tmp_path / "list.jsonl", line, fetched)

    def again() -> tuple[IngestReport, bool, int]:
        report = ingest(read(path)[0], catalog, embedder)
        usable = [one.id for one in catalog.sample(Filters(usable=True), 9, 0)]
        assert "civitai:1@1" in usable, "its weights can be fetched"
        return report, catalog.get(["made:1"])["made:1"].missing, len(usable)

    assert again() == (IngestReport(added=2, missing=1), True, 1)
    assert again() == (IngestReport(unchanged=2, missing=1), True, 1)
    weights.write_bytes(b"")
    assert again() == (IngestReport(updated=1, unchanged=1), False, 2)
    weights.unlink()
    assert again() == (IngestReport(updated=1, unchanged=1, missing=1), True, 1)


def read_text(text: str, folder: Path) -> list[Card]:
    (folder / "three.jsonl").write_text(text, "utf-8")
    return [card for card in read(folder / "three.jsonl")[0] if card.id == "file:2"]
