"""Hub repositories over real HTTP on loopback: README card, files with their checksums, strangers' front matter."""

from collections.abc import Iterator
from typing import Any

import pytest

from stylus.errors import InvalidInput, NotFound, SourceUnavailable
from stylus.records import Card, Rating
from stylus.sources.hub import cards
from stylus.web import Web
from tests.pretend import Fault, Pretend

README = """---
base_model: stabilityai/stable-diffusion-xl-base-1.0
instance_prompt: "inkwash, boat"
tags: [text-to-image, lora, template:sd-lora, ink, style]
license: openrail++
widget:
- text: a boat on a lake
  output:
    url: images/boat 1.png
- text: '-'
  output: {url: images/two.webp}
- text: elsewhere
  output: {url: https://example.org/x.png}
- text: up
  output: {url: ../../secret.png}
- nonsense
---
# Ink wash

Use it at **0.8**. <script>alert(1)</script>
"""


@pytest.fixture
def server() -> Iterator[Pretend]:
    with Pretend() as server:
        yield server


@pytest.fixture
def web(server: Pretend) -> Iterator[Web]:
    with Web("The hub", server.url, sleep=lambda _: None) as web:
        yield web


def sibling(name: str, sha256: str | None = "ab" * 32, size: int = 1000) -> dict[str, Any]:
    lfs = {"sha256": sha256, "size": size, "pointerSize": 130} if sha256 else None
    return {"rfilename": name, "size": size, "blobId": "b10b"} | ({"lfs": lfs} if lfs else {})


def add(server: Pretend, name: str, files: list[dict[str, Any]], readme: str | bytes | None = README) -> None:
    info = {"id": name, "modelId": name, "sha": "c0ffee", "private": False, "tags": [], "siblings": list(files)}
    if readme is not None:
        info["siblings"] = [*files, sibling("README.md", None)]
        server.files["/files/README.md"] = readme.encode() if isinstance(readme, str) else readme
    server.repositories[name] = info


def test_a_repository_gives_its_card(server: Pretend, web: Web) -> None:
    add(server, "someone/ink-wash_lora", [sibling("pytorch_lora_weights.safetensors")])
    place = f"{server.url}/someone/ink-wash_lora/resolve/c0ffee/"
    assert list(cards("someone/ink-wash_lora", web)) == [
        Card.model_validate(
            {
                "id": "hub:someone/ink-wash_lora",
                "name": "ink wash lora",
                "description": "# Ink wash\n\nUse it at **0.8**.",
                "tags": ("ink", "style"),
                "trigger_words": ("inkwash", "boat"),
                "base_model": "sdxl",
                "category": "style",
                "examples": [
                    {"image": place + "images/boat%201.png", "prompt": "a boat on a lake"},
                    {"image": place + "images/two.webp", "prompt": ""},
                ],
                "author": "someone",
                "licence": "openrail++",
                "url": f"{server.url}/someone/ink-wash_lora",
                "sha256": "ab" * 32,
                "bytes": 1000,
                "download": place + "pytorch_lora_weights.safetensors",
                "group": "hub:someone/ink-wash_lora",
            }
        )
    ]
    assert list(cards(f"{server.url}/someone/ink-wash_lora", web)) == list(cards("hub:someone/ink-wash_lora", web))


def test_several_files_are_several_cards_of_one_group_and_whole_models_are_none(server: Pretend, web: Web) -> None:
    names = ["z.safetensors", "a b.safetensors", "pytorch_lora_weights.safetensors", "modelled.safetensors"]
    unet, shard = "unet/diffusion_pytorch_model.fp16.safetensors", "big-00001-of-00002.safetensors"
    whole = ["model.safetensors", unet, shard, "old.ckpt", "late/x.safetensors"]
    add(server, "o/n", [sibling(name) for name in (*names, *whole)], readme=None)
    found = list(cards("o/n", web))
    assert [card.id for card in found] == ["hub:o/n", "hub:o/n/a-b", "hub:o/n/modelled", "hub:o/n/z"]
    assert {card.group for card in found} == {"hub:o/n"}
    assert found[1].name == "n a b"
    assert str(found[1].download).endswith("/a%20b.safetensors")


@pytest.mark.parametrize(
    "readme",
    [
        "",
        "---\n: : :\n---\ntext",
        "---\n- a\n- list\n---\ntext",
        "---\nwidget: 3\ntags: {a: 1}\nbase_model: [1, null]\ninstance_prompt: null\nlicense: [x]\n---\ntext",
        "---\nno end",
        "---\na: &a0 {x: 1}\n" + "".join(f"b{n}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(60)) + "---\ntext",
        "---\na0: &a0 [x]\n" + "".join(f"tags: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(60)) + "---\ntext",
        "---\n" + "- " * 20_000 + "\n---\ntext",
        "---\nlicense: " + "9" * 10_000 + "\n---\ntext",
        b"\xff\xfe\x00bad",
        "x" * 3_000_000,
    ],
)
def test_any_readme_gives_a_card(server: Pretend, web: Web, readme: str | bytes) -> None:
    add(server, "o/n", [sibling("x.safetensors")], readme)
    [card] = cards("o/n", web)
    assert (card.name, card.examples, card.rating) == ("n", (), Rating.GENERAL)


def test_mature_repositories_and_files_without_checksum(server: Pretend, web: Web) -> None:
    readme = "---\ntags: [not-for-all-audiences]\nbase_model: [black-forest-labs/FLUX.1-dev]\n---\n"
    add(server, "o/n", [sibling("x.safetensors", None)], readme)
    [card] = cards("o/n", web)
    assert (card.rating, card.base_model, card.download) == (Rating.MATURE, "flux", None)


def test_errors_are_sentences(server: Pretend, web: Web) -> None:
    for name in ("", "../../etc", "a/b/c", "o n/x", "https://example.org/o/n"):
        with pytest.raises(InvalidInput, match="OWNER/NAME"):
            list(cards(name, web))
    with pytest.raises(NotFound):
        list(cards("o/absent", web))
    add(server, "o/pickles", [sibling("pytorch_lora_weights.bin")])
    with pytest.raises(NotFound, match="safetensors"):
        list(cards("o/pickles", web))
    server.faults = {"/api/models/o/gated": [Fault(403, body=b'{"error": "gated"}')]}
    with pytest.raises(SourceUnavailable, match="gated"):
        list(cards("o/gated", web))
    for answer in (b"[]", b'{"siblings": 3}', b'{"id": "o/n", "siblings": [{"x": 1}]}'):
        server.faults = {"/api/models/o/odd": [Fault(body=answer)]}
        with pytest.raises((SourceUnavailable, NotFound)):
            list(cards("o/odd", web))
