"""What a picture says about itself, and that it is stored whole or not at all."""

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image, PngImagePlugin

from stylus.errors import InvalidInput, NotFound, StorageError
from stylus.generation.generator import Generator, Rendered
from stylus.generation.provenance import load, read, save
from stylus.records import Adapter, Request
from tests.generation import tiny

COMPOSITION = tiny.composition({"both": 0.8}, {"locon": 0.7}, prompt='a "cat", 猫', words={"both": "zzz"})


@pytest.fixture
def rendered(generator: Generator, adapters: dict[str, Adapter]) -> Rendered:
    request = Request(composition=COMPOSITION, count=2, seed=5, steps=2, negative_prompt="a dog")
    return generator.render(request, adapters)[1]


def test_a_saved_picture_can_be_made_again_from_its_record(
    rendered: Rendered, generator: Generator, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    location = save(rendered, str(tmp_path / "images"), "abc-1_2")
    assert location == str(tmp_path / "images" / "abc-1_2.png")
    assert load(location).tobytes() == rendered.image.tobytes()
    record = read(location)
    assert record == rendered.provenance
    assert (record["seed"], record["index"], record["mask"]) == (6, 1, [True, True])
    assert [(a["id"], a["weight"], len(a["sha256"])) for a in record["adapters"]] == [
        ("test:both", 0.8, 64),
        ("test:locon", 0.7, 64),
    ]
    assert record["checkpoint"]["name"] == "tiny"
    assert len(record["checkpoint"]["sha256"]) == 64
    again = generator.render(Request.model_validate(record["request"]), adapters)[record["index"]]
    assert again.image.tobytes() == rendered.image.tobytes()


def test_the_web_uis_line(rendered: Rendered, tmp_path: Path) -> None:
    image = load(save(rendered, str(tmp_path), "a"))
    prompt, negative, settings = image.info["parameters"].splitlines()
    assert prompt == 'a "cat", 猫, zzz <lora:both:0.8> <lora:locon:0.7>'
    assert negative == "Negative prompt: a dog"
    assert settings.startswith("Steps: 2, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 6, Size: 64x64, Model hash: ")
    assert 'Lora hashes: "both: ' in settings


def test_no_path_of_this_machine_is_in_the_picture(rendered: Rendered, folder: Path, tmp_path: Path) -> None:
    assert str(folder.parent).encode() not in Path(save(rendered, str(tmp_path), "a")).read_bytes()


def test_another_store_by_url(rendered: Rendered) -> None:
    location = save(rendered, "memory://pictures/today", "one")
    assert location == "memory:///pictures/today/one.png"
    assert load(location).tobytes() == rendered.image.tobytes()
    assert read(location)["seed"] == 6


def test_a_full_disk_leaves_the_old_picture(
    rendered: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = save(rendered, str(tmp_path), "one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full.*STYLUS_STORE"):
        save(rendered, str(tmp_path), "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    assert load(location).tobytes() == rendered.image.tobytes()


def test_a_store_that_can_not_be_written(rendered: Rendered, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for store in (str(tmp_path / "file"), "nosuch://bucket/images", "/proc/stylus"):
        with pytest.raises(StorageError, match="STYLUS_STORE"):
            save(rendered, store, "one")


def test_names_that_would_leave_the_store(rendered: Rendered, tmp_path: Path) -> None:
    for name in ("../one", "a/b", "", "x" * 101, "one.png\x00", "inputs/../a"):
        with pytest.raises(InvalidInput):
            save(rendered, str(tmp_path), name)


def test_pictures_that_are_gone_broken_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        load(str(tmp_path / "gone.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 50)
    (tmp_path / "text.png").write_text("not a picture")
    for path in (broken, tmp_path / "text.png"):
        with pytest.raises(StorageError, match="damaged, or no picture") as caught:
            load(str(path))
        assert "STYLUS_STORE" not in str(caught.value)
    for location in (str(tmp_path), "nosuch://bucket/one.png"):
        with pytest.raises(StorageError, match=r"Name an image file") as caught:
            load(location)
        assert "STYLUS_STORE" not in str(caught.value)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    deep = PngImagePlugin.PngInfo()
    deep.add_itxt("stylus", '{"a":' * 50_000 + "1" + "}" * 50_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "deep.png", pnginfo=deep)
    for name in ("plain.png", "plain.jpg", "deep.png"):
        with pytest.raises(InvalidInput, match="no Stylus record"):
            read(str(tmp_path / name))


def test_a_torn_write_to_another_store_is_reported(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str, value: bytes, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    with pytest.raises(StorageError, match="no right"):
        save(rendered, "memory://pictures", "one")
